"use strict";
// Shows /openapi.json. Text only ever becomes text.
const add = (parent, tag, text, kind) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  parent.append(element);
  return element;
};

function resolve(schema, document_, depth = 0) {
  if (!schema || typeof schema !== "object" || depth > 8) return schema;
  if (Array.isArray(schema)) return schema.map((each) => resolve(each, document_, depth));
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return resolve(document_.components.schemas[name], document_, depth + 1);
  }
  return Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, resolve(value, document_, depth + 1)]));
}

function kindOf(schema) {
  if (!schema) return "";
  if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(" | ");
  const either = schema.anyOf || schema.oneOf;
  if (either) return either.map(kindOf).join(" | ");
  const kind = Array.isArray(schema.type) ? schema.type.join(" | ") : schema.type || "any";
  const low = schema.minimum ?? schema.minLength;
  const high = schema.maximum ?? schema.maxLength;
  const bounds = low !== undefined && high !== undefined ? ` ${low} … ${high}` : "";
  const standard = schema.default !== undefined && schema.default !== null ? `, ${JSON.stringify(schema.default)} if left out` : "";
  return kind + bounds + standard;
}

function table(parent, rows) {
  const body = add(add(parent, "table"), "tbody");
  for (const cells of rows) {
    const row = add(body, "tr");
    cells.forEach((text, place) => add(row, place ? "td" : "th", text));
  }
}

function showContent(parent, content, document_) {
  for (const [kind, media] of Object.entries(content || {})) {
    add(parent, "p", kind, "soft");
    if (media.example !== undefined) add(parent, "pre", JSON.stringify(media.example, null, 2));
    const schema = resolve(media.schema, document_);
    if (schema && (schema.properties || schema.anyOf || schema.oneOf || schema.items)) add(parent, "pre", JSON.stringify(schema, null, 2));
  }
}

function showCall(parent, path, method, call, document_) {
  const details = add(parent, "details");
  const summary = add(details, "summary");
  add(summary, "b", method.toUpperCase());
  add(summary, "code", path);
  add(summary, "span", ` ${call.summary.replaceAll("`", "")}`, "soft");
  const inside = add(details, "div");
  if (call["x-role"]) add(inside, "p", call["x-role"] === "public" ? "Needs no key." : `Needs a key with the role ${call["x-role"]}, or one that includes it.`, "soft");
  if (call.parameters) {
    add(inside, "h2", "Parameters");
    table(inside, call.parameters.map((each) => [each.name + (each.required ? "" : " (optional)"), each.in, kindOf(each.schema), each.description]));
  }
  if (call.requestBody) {
    add(inside, "h2", "Body");
    showContent(inside, call.requestBody.content, document_);
  }
  add(inside, "h2", "Answers");
  for (const [status, answer] of Object.entries(call.responses)) {
    if (status.startsWith("2")) showContent(inside, answer.content, document_);
  }
  table(inside, Object.entries(call.responses).map(([status, answer]) => [status, answer.description.replaceAll("`", "")]));
}

async function look() {
  const about = document.getElementById("about");
  try {
    const answer = await fetch("/openapi.json");
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const document_ = await answer.json();
    about.textContent = document_.info.description.replaceAll("`", "");
    const calls = document.getElementById("calls");
    const groups = new Map();
    for (const [path, methods] of Object.entries(document_.paths)) {
      for (const [method, call] of Object.entries(methods)) {
        const tag = call.tags[0];
        if (!groups.has(tag)) groups.set(tag, []);
        groups.get(tag).push([path, method, call]);
      }
    }
    for (const [tag, members] of groups) {
      add(calls, "h2", tag);
      for (const [path, method, call] of members) showCall(calls, path, method, call, document_);
    }
    add(calls, "h2", "Problems");
    const codes = add(calls, "div");
    table(codes, Object.entries(document_["x-problems"]).map(([code, kind]) => [code, String(kind.status), kind.title]));
    for (const row of codes.querySelectorAll("tr")) row.id = row.firstChild.textContent;
    if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
  } catch (error) {
    about.textContent = `/openapi.json cannot be read: ${error.message}`;
    about.className = "bad";
  }
}
look();

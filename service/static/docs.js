"use strict";
// The description of the API, to be read and tried, and its problems by code. A key that was typed in on the
// dashboard is used here too; it stays in this tab.
const key = sessionStorage.getItem("key");
// As the browser has it, also while the page is open.
const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", colour);
colour();

/** The page as swagger-ui has it, but for what stands in the way of a keyboard and of a screen reader. */
const usable = ({ React: { createElement } }) => ({
  components: {
    // Its own one has a second `main`, and headings that skip a rank.
    Page: ({ getComponent, specSelectors }) => {
      const part = (name) => createElement(getComponent(name, true));
      const ready = specSelectors.loadingStatus() === "success";
      const asks = ready && specSelectors.securityDefinitions();
      const inside = ready ? [part("InfoContainer"), asks && part("AuthorizeBtnContainer"), part("FilterContainer"), createElement("h2", null, "Calls"), part("operations")] : [];
      return createElement("div", { className: "swagger-ui" }, createElement(getComponent("SvgAssets")), part("errors"), ...inside);
    },
  },
  wrapComponents: {
    // In a button, where a link would be a second control.
    DeepLink: () => ({ className, text }) => createElement("span", { className }, text),
    TextArea: (Area) => (props) => createElement(Area, { "aria-label": "body of the request", ...props }),
  },
});
// What it leaves without a name, or out of reach of the keyboard. Tables of answers are landmarks: each has a name, so
// that those of two open calls can be told apart.
const named = () => {
  const unnamed = (what) => document.querySelectorAll(`#calls ${what}:not([aria-label])`);
  for (const table of unnamed("table[role=region]")) table.setAttribute("aria-label", table.id.replaceAll("_", " "));
  for (const choice of unnamed("[data-param-name] select")) choice.setAttribute("aria-label", choice.closest("[data-param-name]").dataset.paramName);
  // Long lines scroll.
  for (const example of document.querySelectorAll("#calls pre:not([tabindex])")) example.tabIndex = 0;
};
new MutationObserver(named).observe(document.getElementById("calls"), { childList: true, subtree: true });

const ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#calls",
  deepLinking: true,
  docExpansion: "list",
  // A call shows its own schemas.
  defaultModelsExpandDepth: 0,
  filter: true,
  plugins: [usable],
  layout: "Page",
  tryItOutEnabled: true,
  // No badge of another host.
  validatorUrl: null,
  requestInterceptor: (request) => {
    if (key && !request.headers["X-API-Key"]) request.headers.Authorization ??= `Bearer ${key}`;
    return request;
  },
  onComplete: async () => {
    const problems = ui.specSelectors.specJson().get("x-problems");
    const body = document.querySelector("#problems tbody");
    for (const [code, kind] of problems) {
      const row = body.insertRow();
      row.id = code;
      for (const text of [code, kind.get("status"), kind.get("title")]) row.insertCell().textContent = text;
    }
    if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
  },
});

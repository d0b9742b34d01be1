// Rows of a CSV file of any size, read piece by piece. Invariant: quoted fields may hold separators, quotes and
// ends of lines; memory is that of a piece and a row, and no row is split or lost.

// Letters; a rating has a hundred. A quote that is never closed makes the rest of a file one row.
const LONGEST_ROW = 1 << 20;

/** The bytes of a part of a file. A browser reads none of a file that has changed since it was chosen. */
const read = (part) => part.arrayBuffer().catch((error) => {
  throw error.name === "NotReadableError" ? new Error("the file has changed since it was chosen: choose it again") : error;
});

/** Yield arrays of rows: `{line, cells}`, in which line of the file one begins, and its texts. `file`: a Blob. The separator
 *  is that of the first line: comma, semicolon, tab or `::`. Throws where a quote is not closed or a row has no end, with
 *  the line where it begins. */
export async function* rows(file, pieceBytes = 1 << 20) {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let rest = "";
  let separator = null;
  let line = 1; // where `rest` begins
  for (let from = 0; from < file.size || from === 0; from += pieceBytes) {
    const last = from + pieceBytes >= file.size;
    rest += decoder.decode(await read(file.slice(from, from + pieceBytes)), { stream: !last });
    if (separator === null) {
      const line = rest.slice(0, rest.search(/\r?\n|$/));
      separator = ["::", "\t", ";", ","].find((each) => line.includes(each)) ?? ",";
    }
    const pieces = split(rest, separator, last, line);
    ({ left: rest, line } = pieces);
    yield pieces.found;
  }
}

/** The whole rows of `text`, what is left behind the last of them, and in which line that begins. */
export function split(text, separator, last, line = 1) {
  const found = [];
  // As `foldin import` has it: files with tabs or `::` do not quote.
  const quotes = separator === "," || separator === ";";
  let row = [], field = "", quoted = false, begun = 0, at = 0, now = line, opened = line;
  const endRow = (next) => {
    row.push(field);
    if (row.length > 1 || row[0] !== "") found.push({ line, cells: row });
    row = [];
    field = "";
    begun = next;
    line = now;
  };
  while (at < text.length) {
    const letter = text[at];
    if (at - begun > LONGEST_ROW) {
      throw new Error(quoted ? `the quote that begins in line ${opened} is not closed within a megabyte` : `the row that begins in line ${line} has no end within a megabyte`);
    }
    if (letter === "\n" || (letter === "\r" && text[at + 1] !== "\n")) now++;
    if (quoted) {
      if (letter !== '"') field += letter;
      else if (text[at + 1] === '"') (field += '"'), at++;
      // A quote at the end of a piece may be the first of two.
      else if (at + 1 === text.length && !last) break;
      else quoted = false;
      at++;
    } else if (quotes && letter === '"' && field === "") {
      quoted = true;
      opened = now;
      at++;
    } else if (text.startsWith(separator, at)) {
      row.push(field);
      field = "";
      at += separator.length;
    } else if (letter === "\n" || letter === "\r") {
      if (letter === "\r" && at + 1 === text.length && !last) break;
      if (letter === "\r" && text[at + 1] === "\n") at++, now++;
      endRow(++at);
    } else {
      field += letter;
      at++;
    }
  }
  if (last && quoted) throw new Error(`the quote that begins in line ${opened} is never closed`);
  if (last && (field !== "" || row.length)) endRow(at);
  return { found, left: last ? "" : text.slice(begun), line };
}

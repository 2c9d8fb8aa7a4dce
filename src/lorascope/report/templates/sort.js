"use strict";
// Sorts a table by the column whose title is pressed; figures by their value, absent ones last.
for (const table of document.querySelectorAll("table.sortable")) {
  const head = table.tHead.rows[0], body = table.tBodies[0];
  [...head.cells].forEach((title, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...title.childNodes);
    title.append(button);
    title.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const isUp = title.getAttribute("aria-sort") !== "ascending";
      const isNumber = title.classList.contains("number");
      const key = (row) => {
        const cell = row.cells[column], value = cell.dataset.value;
        return isNumber ? (value === undefined ? NaN : Number(value)) : cell.textContent.trim().toLowerCase();
      };
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) => {
        if (isNumber) {
          if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
          return isUp ? a - b : b - a;
        }
        return isUp ? a.localeCompare(b) : b.localeCompare(a);
      });
      for (const other of head.cells) other.setAttribute("aria-sort", "none");
      title.setAttribute("aria-sort", isUp ? "ascending" : "descending");
      body.append(...rows.map(([, row]) => row));
    });
  });
}

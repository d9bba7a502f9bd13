"use strict";
// Tables: a click on a head sorts by its column, a second one the other way round. Numbers sort as numbers.
for (const head of document.querySelectorAll("table.sortable thead th")) {
  const button = head.querySelector("button");
  if (!button) continue;
  button.addEventListener("click", () => {
    const table = head.closest("table");
    const body = table.tBodies[0];
    const column = head.cellIndex;
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const keyed = Array.from(body.rows, (row) => {
      const text = row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
      return { row, text, value: text === "" ? NaN : Number(text) };
    });
    keyed.sort((a, b) => {
      if ((a.text === "") !== (b.text === "")) return a.text === "" ? 1 : -1; // what is missing comes last, either way
      const numbers = !Number.isNaN(a.value) && !Number.isNaN(b.value);
      const order = numbers ? a.value - b.value : a.text.localeCompare(b.text);
      return up ? order : -order;
    });
    body.append(...keyed.map((each) => each.row));
  });
}

// Charts: the numbers under the pointer.
const shorten = (value) => {
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(2);
  return Math.abs(value) >= 1e5 ? String(Math.round(value)) : String(Number(value.toPrecision(5)));
};
for (const chart of document.querySelectorAll("svg.chart")) {
  const box = chart.closest(".chart-box");
  let scale, series, tip, cross;
  const prepare = () => {
    scale = JSON.parse(chart.dataset.scale);
    series = JSON.parse(chart.dataset.series);
    tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    box.append(tip);
    cross = document.createElementNS("http://www.w3.org/2000/svg", "line");
    cross.setAttribute("class", "cross");
    cross.setAttribute("y1", scale.top);
    cross.setAttribute("y2", scale.base);
    cross.style.display = "none";
    chart.append(cross);
  };
  const hide = () => {
    if (!tip) return;
    tip.hidden = true;
    cross.style.display = "none";
  };
  chart.addEventListener("pointermove", (event) => {
    if (!tip) prepare();
    const frame = chart.getBoundingClientRect();
    const unit = chart.viewBox.baseVal.width / frame.width;
    const [first, last] = scale.x;
    const [left, right] = scale.px;
    const wanted = first + (((event.clientX - frame.left) * unit - left) / (right - left)) * (last - first);
    let nearest = null;
    for (const each of series)
      for (const x of each.x) if (nearest === null || Math.abs(x - wanted) < Math.abs(nearest - wanted)) nearest = x;
    const at = left + ((nearest - first) / (last - first)) * (right - left);
    cross.setAttribute("x1", at);
    cross.setAttribute("x2", at);
    cross.style.display = "";
    tip.replaceChildren();
    const top = document.createElement("b");
    top.textContent = `${scale.unit} ${shorten(nearest)}`;
    tip.append(top);
    for (const each of series) {
      const i = each.x.indexOf(nearest);
      if (i < 0) continue;
      const line = document.createElement("div");
      const key = document.createElement("i");
      key.className = `key ${each.colour}`;
      const band = each.band ? ` (${shorten(each.band[i][0])} to ${shorten(each.band[i][1])})` : "";
      line.append(key, `${each.label} ${shorten(each.y[i])}${band}`);
      tip.append(line);
    }
    tip.hidden = false;
    const room = box.getBoundingClientRect();
    const x = frame.left - room.left + at / unit;
    tip.style.left = `${Math.max(0, Math.min(x + 10, room.width - tip.offsetWidth))}px`;
    tip.style.top = `${frame.top - room.top + 4}px`;
  });
  chart.addEventListener("pointerleave", hide);
}

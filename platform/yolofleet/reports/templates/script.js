(() => {
"use strict";
const say = document.createElement("div");
say.setAttribute("aria-live", "polite");
say.style.cssText = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)";
document.body.append(say);
const element = (tag, className, parent) => {
  const made = document.createElement(tag);
  made.className = className;
  parent.append(made);
  return made;
};
const short = (value) => Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-4)
  ? value.toExponential(2) : String(Number(value.toPrecision(4)));
const FOCUSABLE = "main :is(a[href],button,summary,input,[tabindex])";
const charts = [];

function share(value, [low, high], log) {
  return log ? (Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low)) : (value - low) / (high - low);
}

function startChart(figure) {
  const plot = figure.querySelector(".plot");
  const data = JSON.parse(figure.querySelector("script").textContent);
  const across = (x) => share(x, data.x, data.xlog), up = (y) => share(y, data.y, data.ylog);
  const shown = data.series.map((entry) => !entry.off);
  let at = -1;

  function visible() {
    return data.series.filter((entry, index) => shown[index] && entry.p.length);
  }
  function stops() {
    if (data.kind === "lines") return [...new Set(visible().flatMap((s) => s.p.map((p) => p[0])))].sort((a, b) => a - b);
    if (data.kind === "paths") return visible();
    return visible().flatMap((s) => s.p.map((p, i) => ({ s, x: p[0], y: p[1], text: s.t[i] })))
      .sort((a, b) => a.x - b.x || a.y - b.y);
  }
  function clear() {
    plot.querySelectorAll(".tip,.cross,.ring").forEach((node) => node.remove());
    plot.querySelectorAll(".lit").forEach((node) => { node.classList.remove("lit"); node.style.strokeWidth = ""; });
  }
  function cross(x) {
    clear();
    element("div", "cross", plot).style.left = `${100 * across(x)}%`;
  }
  function ring(x, y, colour) {
    const made = element("div", "ring", plot);
    made.style.left = `${100 * across(x)}%`;
    made.style.bottom = `${100 * up(y)}%`;
    made.style.borderColor = colour;
  }
  function tip(x, y, lines) {
    const made = element("div", "tip", plot);
    for (const [colour, text] of lines) {
      const line = element("div", "", made);
      if (colour) element("i", "", line).style.background = colour;
      line.append(text);
    }
    const left = across(x) * plot.clientWidth, room = document.documentElement.clientWidth - plot.getBoundingClientRect().left;
    const start = left + 14 + made.offsetWidth > room ? left - 14 - made.offsetWidth : left + 14;
    made.style.left = `${Math.max(8 - plot.getBoundingClientRect().left, Math.min(start, room - made.offsetWidth - 8))}px`;
    made.style.top = `${Math.max(0, Math.min(plot.clientHeight * (1 - up(y)) + 8, plot.clientHeight - made.offsetHeight))}px`;
    say.textContent = lines.map((line) => line[1]).join("; ");
  }
  const exact = (x) => Number.isInteger(x) ? x.toLocaleString("en") : short(x);
  function showX(x) {
    cross(x);
    if (figure.dataset.group) {
      charts.filter((o) => o !== api && o.group === figure.dataset.group && o.live()).forEach((o) => o.cross(x));
    }
    const lines = [["", `${data.xn} ${exact(x)}`]];
    const near = 0.012;
    for (const series of visible()) {
      const best = series.p.reduce((a, b) => Math.abs(across(b[0]) - across(x)) < Math.abs(across(a[0]) - across(x)) ? b : a);
      if (Math.abs(across(best[0]) - across(x)) <= near) {
        lines.push([series.c, `${series.n}: ${short(best[1])}`]);
        ring(best[0], best[1], series.c);
      }
    }
    for (const mark of data.marks) if (Math.abs(across(mark[0]) - across(x)) <= near) lines.push([mark[2], mark[1]]);
    tip(x, data.y[1], lines);
  }
  function show(stop) {
    if (data.kind === "lines") return showX(stop);
    clear();
    if (data.kind === "paths") {
      const path = plot.querySelector(`[data-series="${data.series.indexOf(stop)}"]`);
      path.classList.add("lit");
      path.style.strokeWidth = 4;
      const end = stop.p[stop.p.length - 1];
      return tip((data.x[0] + end[0]) / 2, data.y[1], [["", stop.n]]);
    }
    ring(stop.x, stop.y, stop.s.c);
    tip(stop.x, stop.y, [[stop.s.c, stop.text]]);
  }
  function nearest(event) {
    const box = plot.getBoundingClientRect(), all = stops();
    const px = event.clientX - box.left, py = event.clientY - box.top;
    let best = -1, least = Infinity;
    all.forEach((stop, index) => {
      let distance;
      if (data.kind === "lines") distance = Math.abs(across(stop) * box.width - px);
      else if (data.kind === "paths") {
        const x = (px / box.width) * (data.x[1] - data.x[0]) + data.x[0];
        const after = stop.p.findIndex((p) => p[0] >= x), b = stop.p[after < 1 ? 1 : after], a = stop.p[(after < 1 ? 1 : after) - 1];
        if (!a || !b) return;
        distance = Math.abs((1 - up(a[1] + ((x - a[0]) / (b[0] - a[0])) * (b[1] - a[1]))) * box.height - py);
      } else distance = Math.hypot(across(stop.x) * box.width - px, (1 - up(stop.y)) * box.height - py);
      if (distance < least) [best, least] = [index, distance];
    });
    return data.kind === "points" && least > 60 ? -1 : best;
  }
  function leave() {
    at = -1;
    charts.forEach((other) => other.clear());
  }
  for (const kind of ["pointermove", "pointerdown"]) {
    plot.addEventListener(kind, (event) => {
      at = nearest(event);
      if (at < 0) leave(); else show(stops()[at]);
    });
  }
  plot.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") leave(); });  // a finger is lifted
  plot.addEventListener("blur", leave);
  plot.addEventListener("keydown", (event) => {
    const all = stops(), moves = { ArrowRight: at + 1, ArrowLeft: at < 0 ? all.length - 1 : at - 1, Home: 0, End: all.length - 1 };
    if (event.key === "Escape") leave();
    else if (event.key in moves && all.length) {
      event.preventDefault();
      at = Math.max(0, Math.min(all.length - 1, moves[event.key]));
      show(all[at]);
    }
  });
  figure.querySelectorAll(".legend button").forEach((button) => button.addEventListener("click", () => {
    const index = Number(button.dataset.series);
    shown[index] = !shown[index];
    button.setAttribute("aria-pressed", shown[index]);
    plot.querySelectorAll(`[data-series="${index}"]`).forEach((node) => node.toggleAttribute("hidden", !shown[index]));
    clear();
  }));
  const api = { group: figure.dataset.group, cross, clear, live: () => figure.isConnected };
  charts.push(api);
}

function startTable(box) {
  const body = box.querySelector("tbody"), heads = [...box.querySelectorAll("thead th")];
  const value = (row, column) => {
    const cell = row.cells[column], raw = cell.dataset.sort ?? cell.textContent.trim();
    return raw !== "" && !Number.isNaN(Number(raw)) ? Number(raw) : raw.toLowerCase();
  };
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const first = head.classList.contains("number") ? "descending" : "ascending";
    const order = !head.ariaSort ? first : head.ariaSort === "ascending" ? "descending" : "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const rows = [...body.rows].map((row) => [value(row, column), row]);
    rows.sort(([a], [b]) => sign * (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? 1 : -1));
    body.append(...rows.map((entry) => entry[1]));
  }));
  box.querySelector(".filter")?.addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  });
}

function start() {
  charts.length = 0;
  document.querySelectorAll(".chart").forEach(startChart);
  document.querySelectorAll(".table").forEach(startTable);
}

function state() {
  const key = (node) => node.closest("section")?.id + "/" + (node.closest(".chart")?.getAttribute("aria-label") ?? "");
  return {
    open: [...document.querySelectorAll("details")].map((node) => node.open),
    off: [...document.querySelectorAll(".legend button")].map((node) => [key(node) + node.textContent, node.ariaPressed]),
    sorted: [...document.querySelectorAll(".table")].map((box) => [
      [...box.querySelectorAll("thead th")].findIndex((head) => head.ariaSort),
      box.querySelector("[aria-sort]")?.ariaSort, box.querySelector(".filter")?.value ?? ""]),
    scrolled: [...document.querySelectorAll(".wide")].map((node) => [node.scrollLeft, node.scrollTop]),
    focused: [...document.querySelectorAll(FOCUSABLE)].indexOf(document.activeElement),
    restore() {
      document.querySelectorAll("details").forEach((node, index) => { node.open = this.open[index] ?? node.open; });
      const off = new Map(this.off);
      document.querySelectorAll(".legend button").forEach((node) => {
        const before = off.get(key(node) + node.textContent);
        if (before && before !== node.ariaPressed) node.click();
      });
      document.querySelectorAll(".table").forEach((box, index) => {
        const [column, order, words] = this.sorted[index] ?? [-1];
        const button = column >= 0 ? box.querySelectorAll("thead th")[column]?.querySelector("button") : null;
        if (button) { button.click(); if (button.parentNode.ariaSort !== order) button.click(); }
        const field = box.querySelector(".filter");
        if (field && words) { field.value = words; field.dispatchEvent(new Event("input")); }
      });
      document.querySelectorAll(".wide").forEach((node, index) => node.scrollTo(...(this.scrolled[index] ?? [0, 0])));
      if (this.focused >= 0) document.querySelectorAll(FOCUSABLE)[this.focused]?.focus({ preventScroll: true });
    },
  };
}

async function follow() {
  let tag = "";
  for (;;) {
    await new Promise((done) => setTimeout(done, document.hidden ? 10000 : 2000));
    try {
      const answer = await fetch(location.pathname, { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
      document.querySelector(".live")?.classList.toggle("away", !answer.ok && answer.status !== 304);
      if (answer.status !== 200 || document.querySelector(".tip,.filter:focus")) continue;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html"), before = state();
      tag = answer.headers.get("ETag") ?? "";
      document.querySelector("main").replaceWith(page.querySelector("main"));
      document.title = page.title;
      start();
      before.restore();
    } catch {
      document.querySelector(".live")?.classList.add("away");
    }
  }
}

start();
if ("live" in document.body.dataset) follow();
})();

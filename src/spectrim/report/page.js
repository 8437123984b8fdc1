// The page: which layer is open, how the table is sorted, what the panel says.
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const $ = (id) => document.getElementById(id);
  const root = document.documentElement, page = $("page"), figure = Charts.figure;
  const state = { layer: null, basis: null, tab: "spectrum", near: true, order: "model", sort: "index", up: true, only: null, word: "" };

  // Every text goes in as text: a layer may be called <script>.
  function h(tag, attributes, ...children) {
    const el = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes || {})) key === "style" ? (el.style.cssText = value) : el.setAttribute(key, value);
    el.append(...children.filter((x) => x !== null && x !== undefined));
    return el;
  }
  const percent = (x, digits = 0) => {
    if (x === null || x === undefined) return "–";
    const step = 10 ** -digits;
    if (x > 0 && x < 1 && (100 * x < step / 2 || 100 * x >= 100 - step / 2)) return (x < 0.5 ? `< ${step}` : `> ${100 - step}`) + "\u00a0%";
    return (100 * x).toFixed(digits) + "\u00a0%";
  };
  const count = (x) => x === null || x === undefined ? "–" : x.toLocaleString("en");
  const many = (k, one, more) => `${count(k)} ${k === 1 ? one : more}`;

  // Light or dark: the system's choice until a person makes another.
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  function paint(redraw) {
    root.dataset.theme = chosen || (system.matches ? "dark" : "light");
    $("theme").textContent = root.dataset.theme === "dark" ? "◐ Light" : "◐ Dark";
    if (redraw) draw();
  }
  system.addEventListener("change", () => paint(true));
  $("theme").addEventListener("click", () => { chosen = root.dataset.theme === "dark" ? "light" : "dark"; paint(true); });
  // Paper is white: charts are redrawn in light ink for the print-out and put back after it.
  let before = null;
  window.addEventListener("beforeprint", () => { before = chosen; chosen = "light"; paint(true); });
  window.addEventListener("afterprint", () => { chosen = before; paint(true); });
  paint(false);
  if (!data.layers.length) return;

  const table = $("table"), body = table.tBodies[0], rows = Array.from(body.rows);
  const rowOf = (index) => rows[rows.findIndex((r) => +r.dataset.index === index)];
  const visible = () => Array.from(body.rows).filter((r) => !r.hidden);

  function draw() { drawGlance(); if (state.layer !== null && page.classList.contains("open")) drawPanel(); }

  function drawGlance() {
    return Charts.glance($("glance"), data, state.order, (i) => open(i, false)).then((shown) => {
      const legend = $("glance-legend"), item = (color, text) => h("span", {}, h("i", { style: `background:var(--${color})` }), text);
      legend.replaceChildren(...(shown.zeros ? [item("spike", "spikes"), item("bulk", "bulk; entries kept"), item("bulk-cut", "entries set to zero")]
        : data.plan ? [item("spike", "spikes kept"), item("spike-cut", "spikes cut"), item("bulk", "bulk kept"), item("bulk-cut", "bulk cut")]
        : [item("spike", "spikes"), item("bulk", "bulk")]),
        h("span", {}, h("i", { class: "rule", style: "border-top-style:dotted" }), "noise edge"));
      if (shown.cut) legend.append(h("span", {}, h("i", { class: "rule" }), "the plan keeps what lies above"));
      if (state.layer !== null) Charts.mark($("glance"), state.layer);
    });
  }

  // The panel -------------------------------------------------------------------------------------------------
  const viewOf = (layer) => layer.views.find((v) => v.basis === state.basis) || layer.views[0];

  function choices(el, items, current, pick) {
    el.replaceChildren(...(items.length < 2 ? [] : items.map(([key, text]) => {
      const b = h("button", { type: "button", "aria-pressed": String(key === current), "data-key": String(key) }, text);
      b.addEventListener("click", () => { pick(key); drawPanel(); const again = el.querySelector('[aria-pressed="true"]'); if (again) again.focus(); });
      return b;
    })));
  }

  function planBox(layer) {
    const p = layer.plan;
    if (!p) return [];
    const box = h("div", { class: "callout" + (p.action === "keep" ? " keep" : "") }, h("p", {}, h("b", {}, p.text)));
    const d = p.directions;
    if (d) {
      const parts = [["spike", "spikes kept", d.spikes_kept], ["spike-cut", "spikes cut", d.spikes_cut], ["bulk", "bulk kept", d.bulk_kept], ["bulk-cut", "bulk cut", d.bulk_cut]].filter((x) => x[2]);
      box.append(h("div", { class: "keepbar", "aria-hidden": "true" }, ...parts.map((x) => h("i", { style: `background:var(--${x[0]});flex:${x[2]}` }))),
        h("div", { class: "keys-in" }, ...parts.map((x) => h("span", {}, h("i", { style: `background:var(--${x[0]})` }), `${count(x[2])} ${x[1]}`))));
    }
    const facts = [];
    if (p.params_before !== null && p.params_before !== p.params_after) facts.push(`${count(p.params_before)} → ${count(p.params_after)} parameters (${percent(p.share)})`);
    if (d && p.action !== "keep") facts.push(`${percent(d.energy, 1)} of the squared norm kept`);
    if (p.damage !== null && p.action !== "keep") facts.push(`predicted relative error ${figure(p.damage)}`);
    if (layer.change && layer.change.relative_error !== null) facts.push(`measured ${figure(layer.change.relative_error)}`);
    if (facts.length) box.append(h("div", { class: "keys-in" }, ...facts.map((text) => h("span", {}, text))));
    if (p.reason) box.append(h("p", { class: "why" }, h("b", {}, "Why: "), p.reason));
    return [box];
  }

  function figuresTable(layer, view) {
    if (!layer.views.length) return [];
    const head = h("tr", {}, h("th", { scope: "col" }, ""), ...layer.views.map((v) => h("th", { scope: "col", class: "num" + (v === view && layer.views.length > 1 ? " on" : "") }, v.basis)));
    const line = (name, f) => h("tr", {}, h("th", { scope: "row" }, name), ...layer.views.map((v) => h("td", { class: "num" + (v === view && layer.views.length > 1 ? " on" : "") }, f(v))));
    const span = (v) => v.edge_interval ? ` (${figure(v.edge_interval[0])} to ${figure(v.edge_interval[1])})` : "";
    const lines = [
      line("Spikes", (v) => `${count(v.spikes)} of ${count(v.values)}`), line("Bulk share", (v) => percent(v.bulk_share, 1)),
      line("Squared norm in spikes", (v) => percent(v.spike_energy, 1)), line("Edge", (v) => figure(v.edge, 4) + span(v)), line("Sigma", (v) => figure(v.sigma)),
      line("Misfit", (v) => figure(v.misfit, 2)), line("Largest value", (v) => figure(v.largest, 4) + (v.edge ? `, ${figure(v.largest / v.edge)} × edge` : "")),
      line("Stable rank", (v) => figure(v.stable_rank)), line("Measured shape", (v) => `${v.rows} × ${v.cols}`),
    ];
    return [h("table", {}, h("thead", {}, head), h("tbody", {}, ...lines))];
  }

  function drawPanel() {
    const layer = data.layers[state.layer], view = layer.views.length ? viewOf(layer) : null;
    $("p-where").textContent = `Layer ${layer.index + 1} of ${data.layers.length}`;
    $("p-name").textContent = layer.name;
    const tag = (text, cls) => h("span", { class: "tag" + (cls ? " " + cls : "") }, text);
    $("p-badges").replaceChildren(...[tag(layer.kind), tag(`${layer.rows} × ${layer.cols}`), layer.params === null ? null : tag(many(layer.params, "parameter", "parameters")),
      layer.spikes === null ? null : tag(many(layer.spikes, "spike", "spikes"), layer.spikes ? "hot" : "")].filter(Boolean));
    $("p-plan").replaceChildren(...planBox(layer));
    document.querySelectorAll("[data-tab]").forEach((b) => { const on = b.dataset.tab === state.tab; b.setAttribute("aria-selected", on); b.tabIndex = on ? 0 : -1; });
    const names = { equalised: "Equalised", plain: "Plain" };
    choices($("p-views"), layer.views.map((v) => [v.basis, names[v.basis]]), view && view.basis, (key) => { state.basis = key; });
    const scree = state.tab === "scree", ranged = view && (scree ? view.values > 60 : Charts.isFar(view));
    choices($("p-range"), ranged ? [[true, scree ? "First" : "Near edge"], [false, scree ? "All" : "Full"]] : [], state.near, (key) => { state.near = key; });
    const chart = $("p-chart");
    chart.setAttribute("aria-labelledby", "tab-" + state.tab);
    chart.hidden = !view;
    document.querySelector(".controls").hidden = !view;
    document.querySelector(".controls").style.display = view ? "" : "none";
    if (view) Promise.resolve((scree ? Charts.scree : Charts.spectrum)(chart, layer, view, state.near)).then(() => { chart.dataset.drawn = `${layer.index}:${view.basis}:${state.tab}`; });
    $("p-caption").textContent = !view ? "" : caption(layer, view, scree);
    $("p-figures").replaceChildren(...figuresTable(layer, view));
    const notes = [];
    if (layer.note) notes.push(h("p", { class: "warn" }, layer.note));
    if (layer.zero_rows || layer.zero_cols) notes.push(h("p", {}, `${many(layer.zero_rows, "row is", "rows are")} all zero, and ${many(layer.zero_cols, "column", "columns")}; they were left out before the spectrum was measured.`));
    if (view && view.method) notes.push(h("p", {}, "Estimator: ", h("code", {}, view.method)));
    $("p-notes").replaceChildren(...notes);
  }

  function caption(layer, view, scree) {
    if (view.edge === null) return "No noise law could be fitted to this spectrum.";
    const law = view.law ? "The line is the noise law fitted to the bulk" : "No noise law is drawn: sigma is not known or too few values are left";
    const cut = Charts.cutOf(layer, view);
    let text = scree ? `${law}; values above the dashed edge are spikes.` : `${law}; dots below the axis are single spikes, ticks are bulk values.`;
    if (cut) text += " What the plan cuts is shaded.";
    else if (layer.plan && view.kept) text += ` The plan cuts in the ${layer.plan.basis} basis.`;
    return text;
  }

  function open(index, focus) {
    state.layer = index;
    const wasOpen = page.classList.contains("open");
    page.classList.add("open");
    rows.forEach((r) => { const on = +r.dataset.index === index; on ? r.setAttribute("aria-current", "true") : r.removeAttribute("aria-current"); });
    const row = rowOf(index);
    rows.forEach((r) => { r.tabIndex = r === row ? 0 : -1; });
    drawPanel();
    $("panel").scrollTop = 0;
    // The page has made room for the panel: what stands in it must be measured again.
    if (!wasOpen) Plotly.Plots.resize($("glance"));
    Charts.mark($("glance"), index);
    if (focus) $("panel").focus({ preventScroll: true });
  }
  function close() {
    page.classList.remove("open");
    Plotly.Plots.resize($("glance"));
    const row = state.layer !== null && rowOf(state.layer);
    if (row) { row.removeAttribute("aria-current"); row.focus({ preventScroll: true }); }
    Charts.mark($("glance"), -1);
  }
  const docked = () => window.matchMedia("(min-width: 1160px)").matches;
  function step(by) {
    const order = visible().map((r) => +r.dataset.index), at = order.indexOf(state.layer);
    const next = order[Math.min(Math.max(at + by, 0), order.length - 1)];
    if (next !== undefined) open(next, false);
  }
  $("p-prev").addEventListener("click", () => step(-1));
  $("p-next").addEventListener("click", () => step(1));
  $("p-close").addEventListener("click", close);
  document.querySelectorAll("[data-tab]").forEach((b) => {
    b.addEventListener("click", () => { state.tab = b.dataset.tab; state.near = state.tab === "spectrum"; drawPanel(); });
    b.addEventListener("keydown", (e) => {
      if (e.key !== "ArrowLeft" && e.key !== "ArrowRight") return;
      const other = document.querySelector(`[data-tab]:not(#${b.id})`);
      other.click(); other.focus(); e.preventDefault();
    });
  });
  document.addEventListener("keydown", (e) => { if (e.key === "Escape" && page.classList.contains("open")) close(); });

  // The table -------------------------------------------------------------------------------------------------
  const keys = {
    index: (x) => x.index, kind: (x) => x.kind, shape: (x) => Math.min(x.rows, x.cols) * 1e7 + Math.max(x.rows, x.cols), params: (x) => x.params, spikes: (x) => x.spikes,
    plain_spikes: (x) => x.plain_spikes, bulk_share: (x) => x.bulk_share, sigma: (x) => x.sigma, misfit: (x) => x.misfit, action: (x) => x.plan && x.plan.action,
    rank: (x) => x.plan && (x.plan.rank !== null ? x.plan.rank : x.plan.zero_share), after: (x) => x.plan && x.plan.params_after,
  };
  function sort(key) {
    // Figures start with the largest, words and the model's own order with the first.
    const words = ["index", "kind", "action"].includes(key);
    state.up = state.sort === key ? !state.up : words;
    state.sort = key;
    table.querySelectorAll("th[aria-sort]").forEach((th) => {
      th.setAttribute("aria-sort", th.querySelector("button").dataset.sort === key ? (state.up ? "ascending" : "descending") : "none");
    });
    const value = (row) => keys[key](data.layers[+row.dataset.index]), none = (v) => v === null || v === undefined || v === false;
    body.append(...rows.slice().sort((a, b) => {
      const [u, v] = [value(a), value(b)];
      if (none(u) || none(v)) return none(u) - none(v) || a.dataset.index - b.dataset.index;  // no figure: always last
      return (u < v ? -1 : u > v ? 1 : 0) * (state.up ? 1 : -1) || a.dataset.index - b.dataset.index;
    }));
  }
  table.querySelectorAll("[data-sort]").forEach((b) => b.addEventListener("click", () => sort(b.dataset.sort)));
  table.querySelector("th.name").setAttribute("aria-sort", "ascending");

  const classOf = (x) => data.plan ? (x.plan ? x.plan.action : "untouched") : x.kind;
  function filter() {
    const word = state.word.toLowerCase();
    for (const r of rows) {
      const x = data.layers[+r.dataset.index];
      r.hidden = !((!word || x.name.toLowerCase().includes(word)) && (!state.only || classOf(x) === state.only));
    }
    const left = visible();
    $("shown").textContent = left.length === rows.length ? many(rows.length, "matrix", "matrices") : `${left.length} of ${many(rows.length, "matrix", "matrices")}`;
    if (left.length && !left.some((r) => r.tabIndex === 0)) { rows.forEach((r) => { r.tabIndex = -1; }); left[0].tabIndex = 0; }
  }
  $("filter").addEventListener("input", (e) => { state.word = e.target.value; filter(); });
  const classes = new Map();
  data.layers.forEach((x) => classes.set(classOf(x), (classes.get(classOf(x)) || 0) + 1));
  if (classes.size > 1) $("chips").append(...[...classes].map(([name, k]) => {
    const b = h("button", { type: "button", "aria-pressed": "false" }, name, h("span", {}, count(k)));
    b.addEventListener("click", () => {
      state.only = state.only === name ? null : name;
      $("chips").querySelectorAll("button").forEach((c) => c.setAttribute("aria-pressed", String(c === b && state.only !== null)));
      filter();
    });
    return b;
  }));

  body.addEventListener("click", (e) => { const row = e.target.closest("tr"); if (row) open(+row.dataset.index, !docked()); });
  body.addEventListener("keydown", (e) => {
    const row = e.target.closest("tr");
    if (!row) return;
    if (e.key === "Enter" || e.key === " ") { open(+row.dataset.index, !docked()); e.preventDefault(); return; }
    const list = visible(), at = list.indexOf(row);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: list.length - 1 }[e.key];
    if (to === undefined || !list[to]) return;
    e.preventDefault();
    rows.forEach((r) => { r.tabIndex = -1; });
    list[to].tabIndex = 0;
    list[to].focus();
    // With the panel beside the table, moving is reading.
    if (page.classList.contains("open") && docked()) open(+list[to].dataset.index, false);
  });
  document.querySelectorAll("[data-order]").forEach((b) => b.addEventListener("click", () => {
    state.order = b.dataset.order;
    document.querySelectorAll("[data-order]").forEach((c) => c.setAttribute("aria-pressed", String(c === b)));
    drawGlance();
  }));

  // Wide screens have room for a layer beside the overview: the one with the most spikes is the best first look.
  const first = data.layers.reduce((a, x) => (x.spikes !== null && (a === null || x.spikes > a.spikes) ? x : a), null);
  if (docked() && first) page.classList.add("open");
  drawGlance().then(() => { if (docked() && first) open(first.index, false); document.body.dataset.ready = "yes"; });
})();

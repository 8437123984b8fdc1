// The page: light and dark, which layer is open, how the table is sorted and filtered, and the keys.
"use strict";

(() => {
  const { count, many, h } = Theme;
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const $ = (id) => document.getElementById(id);
  const all = (selector) => Array.from(document.querySelectorAll(selector));
  const page = $("page");
  const state = { layer: null, basis: null, tab: "spectrum", near: true, order: "model" };
  const sorted = { by: "index", up: true },
    shown = { only: null, word: "" };

  Theme.shades($("theme"), () => data.layers.length && draw());
  if (!data.layers.length) return;

  // What is open ------------------------------------------------------------------------------------------------
  const table = $("table"),
    body = table.tBodies[0],
    rows = Array.from(body.rows);
  const layerOf = (row) => data.layers[+row.dataset.index];
  const rowOf = (index) => rows.find((r) => +r.dataset.index === index);
  const visible = () => Array.from(body.rows).filter((r) => !r.hidden);
  const isOpen = () => page.classList.contains("open");
  const docked = () => window.matchMedia("(min-width: 1160px)").matches;
  const reach = (row) => rows.forEach((r) => (r.tabIndex = r === row ? 0 : -1)); // one row is in the order of tabs

  function draw() {
    drawGlance();
    if (isOpen()) drawPanel();
  }
  function drawPanel() {
    Panel.draw(data, data.layers[state.layer], state, (change) => {
      Object.assign(state, change);
      drawPanel();
    });
  }
  const LEGENDS = {
    none: ["spike", "spikes", "bulk", "bulk"],
    ranks: ["spike", "spikes kept", "spike-cut", "spikes cut", "bulk", "bulk kept", "bulk-cut", "bulk cut"],
    zeros: ["spike", "spikes", "bulk", "bulk, and entries kept", "bulk-cut", "entries set to zero"],
  };
  function drawGlance() {
    return Glance.draw($("glance"), data, state.order, (i) => open(i, !docked())).then((seen) => {
      const item = (color, text) => h("span", {}, h("i", { style: `background:var(--${color})` }), text);
      const rule = (style, text) => h("span", {}, h("i", { class: "rule", style }), text);
      const items = seen.zeros ? LEGENDS.zeros : data.plan ? LEGENDS.ranks : LEGENDS.none;
      const where = seen.elsewhere ? "noise edge, of the matrices as they are (not evened out)" : "noise edge";
      const legend = [rule("border-top-style:dotted", where)];
      if (seen.cut) legend.push(rule("", `the plan keeps what lies above${seen.named ? ", and the marked ones" : ""}`));
      for (let i = items.length - 2; i >= 0; i -= 2) legend.unshift(item(items[i], items[i + 1]));
      $("glance-legend").replaceChildren(...legend);
      if (isOpen()) Glance.mark($("glance"), state.layer);
    });
  }

  function open(index, focus) {
    const wasOpen = isOpen(),
      row = rowOf(index);
    state.layer = index;
    page.classList.add("open");
    rows.forEach((r) => (r === row ? r.setAttribute("aria-current", "true") : r.removeAttribute("aria-current")));
    reach(row);
    drawPanel();
    $("panel").scrollTop = 0;
    // On a small screen the panel covers the page, and what it covers is out of reach.
    document.querySelector("main").inert = !docked();
    // On a large one the page has made room: what stands in it must be measured again.
    if (!wasOpen) Plotly.Plots.resize($("glance"));
    Glance.mark($("glance"), index);
    if (focus) $("panel").focus({ preventScroll: true });
  }
  function close() {
    const row = rowOf(state.layer);
    page.classList.remove("open");
    document.querySelector("main").inert = false;
    Plotly.Plots.resize($("glance"));
    if (row) {
      row.removeAttribute("aria-current");
      row.focus({ preventScroll: true });
    }
    Glance.mark($("glance"), -1);
  }
  function step(by) {
    const order = visible(),
      next = order[order.indexOf(rowOf(state.layer)) + by];
    if (next) open(+next.dataset.index, false);
  }
  $("p-prev").addEventListener("click", () => step(-1));
  $("p-next").addEventListener("click", () => step(1));
  $("p-close").addEventListener("click", close);
  window.addEventListener("resize", () => (document.querySelector("main").inert = isOpen() && !docked()));
  document.addEventListener("keydown", (e) => {
    if (e.key === "Escape" && isOpen()) close();
  });
  all("[data-tab]").forEach((tab) => {
    tab.addEventListener("click", () => {
      Object.assign(state, { tab: tab.dataset.tab, near: tab.dataset.tab !== "scree" });
      drawPanel();
    });
    tab.addEventListener("keydown", (e) => {
      if (e.key !== "ArrowLeft" && e.key !== "ArrowRight") return;
      const tabs = all("[data-tab]").filter((t) => !t.hidden),
        by = e.key === "ArrowRight" ? 1 : -1;
      const other = tabs[(tabs.indexOf(tab) + by + tabs.length) % tabs.length];
      other.click();
      other.focus();
      e.preventDefault();
    });
  });
  all("[data-order]").forEach((button) =>
    button.addEventListener("click", () => {
      state.order = button.dataset.order;
      all("[data-order]").forEach((b) => b.setAttribute("aria-pressed", String(b === button)));
      drawGlance();
    }),
  );

  // The table ---------------------------------------------------------------------------------------------------
  const values = {
    index: (x) => x.index,
    kind: (x) => x.kind,
    shape: (x) => Math.min(x.rows, x.cols) * 1e7 + Math.max(x.rows, x.cols),
    params: (x) => x.params,
    spikes: (x) => x.spikes,
    plain_spikes: (x) => x.plain_spikes,
    bulk_share: (x) => x.bulk_share,
    sigma: (x) => x.sigma,
    misfit: (x) => x.misfit,
    agreement: (x) => (x.verdict ? x.verdict.agreement : null),
    verdict: (x) => (x.verdict ? x.verdict.order : null),
    action: (x) => (x.plan ? x.plan.action : null),
    rank: (x) => (!x.plan ? null : x.plan.rank !== null ? x.plan.rank : x.plan.zero_share),
    after: (x) => (x.plan ? x.plan.params_after : null),
  };
  for (const { name } of data.estimators) values["of:" + name] = (x) => (x.estimators[name] || { spikes: null }).spikes;
  function sort(key) {
    // Figures start with the largest; words, and the model's own order, with the first.
    sorted.up = sorted.by === key ? !sorted.up : ["index", "kind", "action", "verdict"].includes(key);
    sorted.by = key;
    table.querySelectorAll("th[aria-sort]").forEach((th) => {
      const mine = th.querySelector("button").dataset.sort === key;
      th.setAttribute("aria-sort", !mine ? "none" : sorted.up ? "ascending" : "descending");
    });
    const compare = (a, b) => {
      const [u, v] = [a, b].map((row) => values[key](layerOf(row)));
      if (u === null || v === null) return (u === null) - (v === null); // no figure: always last
      return (u < v ? -1 : u > v ? 1 : 0) * (sorted.up ? 1 : -1);
    };
    body.append(...rows.slice().sort(compare)); // a stable sort: equal figures stay in the model's order
  }
  table.querySelectorAll("[data-sort]").forEach((b) => b.addEventListener("click", () => sort(b.dataset.sort)));
  table.querySelector("th.name").setAttribute("aria-sort", "ascending");

  // What the chips choose by: what the plan does, else what the verdict is, else the kind of layer.
  const told = data.layers.some((x) => x.verdict);
  const classOf = (x) =>
    data.plan ? (x.plan ? x.plan.action : "untouched") : !told ? x.kind : x.verdict ? x.verdict.kind : "no verdict";
  function filter() {
    for (const row of rows) {
      const x = layerOf(row),
        named = x.name.toLowerCase().includes(shown.word.toLowerCase());
      row.hidden = !named || (shown.only !== null && classOf(x) !== shown.only);
    }
    const left = visible(),
      whole = many(rows.length, "matrix", "matrices");
    $("shown").textContent = left.length === rows.length ? whole : `${left.length} of ${whole}`;
    if (left.length && !left.some((r) => r.tabIndex === 0)) reach(left[0]);
  }
  $("filter").addEventListener("input", (e) => {
    shown.word = e.target.value;
    filter();
  });
  const classes = new Map();
  data.layers.forEach((x) => classes.set(classOf(x), (classes.get(classOf(x)) || 0) + 1));
  for (const [name, k] of classes.size > 1 ? classes : []) {
    const chip = h("button", { type: "button", "aria-pressed": "false" }, name, h("span", {}, count(k)));
    chip.addEventListener("click", () => {
      shown.only = shown.only === name ? null : name;
      all("#chips button").forEach((c) => c.setAttribute("aria-pressed", String(c === chip && shown.only !== null)));
      filter();
    });
    $("chips").append(chip);
  }

  body.addEventListener("click", (e) => {
    const row = e.target.closest("tr");
    if (row) open(+row.dataset.index, !docked());
  });
  body.addEventListener("keydown", (e) => {
    const row = e.target.closest("tr"),
      list = visible(),
      at = list.indexOf(row);
    if (e.key === "Enter" || e.key === " ") {
      e.preventDefault();
      open(+row.dataset.index, !docked());
      return;
    }
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: list.length - 1 }[e.key];
    if (to === undefined || !list[to]) return;
    e.preventDefault();
    reach(list[to]);
    list[to].focus();
    if (isOpen() && docked()) open(+list[to].dataset.index, false); // with the panel beside it, to move is to read
  });

  // Wide screens have room for a layer beside the overview; of those that change, the one with the most spikes.
  const changed = data.layers.filter((x) => x.plan && x.plan.action !== "keep");
  const first = (changed.length ? changed : data.layers)
    .filter((x) => x.spikes !== null)
    .reduce((a, x) => (a === null || x.spikes > a.spikes ? x : a), null);
  const show = docked() && first;
  if (show) {
    state.layer = first.index;
    page.classList.add("open"); // before the first drawing: the chart must know its width
  }
  drawGlance().then(() => {
    if (show) open(first.index, false);
    document.body.dataset.ready = "yes";
  });
})();

// The layer that is open: what the plan does to it and why, its chart, its figures in both bases, its notes.
"use strict";

const Panel = (() => {
  const { figure, count, many, percent, h } = Theme;
  const $ = (id) => document.getElementById(id);
  const FATES = [
    ["spike", "spikes kept", "spikes_kept"],
    ["spike-cut", "spikes cut", "spikes_cut"],
    ["bulk", "bulk kept", "bulk_kept"],
    ["bulk-cut", "bulk cut", "bulk_cut"],
  ];

  // Buttons of which one is pressed; nothing where there is nothing to choose.
  function choices(el, items, current, pick) {
    const buttons = items.map(([key, text]) => {
      const pressed = String(key === current);
      const button = h("button", { type: "button", "aria-pressed": pressed, "data-key": String(key) }, text);
      button.addEventListener("click", () => {
        pick(key);
        const again = el.querySelector('[aria-pressed="true"]');
        if (again) again.focus(); // the buttons are new ones now
      });
      return button;
    });
    el.replaceChildren(...(buttons.length > 1 ? buttons : []));
  }

  function badges(layer) {
    const tag = (text, cls) => h("span", { class: cls ? "tag " + cls : "tag" }, text);
    const out = [tag(layer.kind), tag(`${layer.rows} × ${layer.cols}`)];
    if (layer.params !== null) out.push(tag(many(layer.params, "parameter", "parameters")));
    if (layer.spikes !== null) out.push(tag(many(layer.spikes, "spike", "spikes"), layer.spikes ? "hot" : ""));
    return out;
  }

  function verdictBox(layer) {
    const v = layer.verdict;
    if (!v) return [];
    const facts = [];
    if (v.agreement !== null) facts.push(`Bema, Median and Broadening agree to ${percent(v.agreement)}`);
    if (v.tail && v.kind === "no fit") facts.push(`tail exponent ${figure(v.tail.exponent, 2)} over ${many(v.tail.count, "value", "values")}`);
    const chip = h("span", { class: "kind " + v.kind.replace(" ", "-") }, v.kind);
    return [
      h("div", { class: "told" }, h("p", {}, chip, v.reason ? " " + v.reason : "")),
      h("div", { class: "keys-in" }, ...facts.map((text) => h("span", {}, text))),
    ];
  }

  function planBox(layer) {
    const p = layer.plan;
    if (!p) return [];
    const d = p.directions,
      keep = p.action === "keep";
    const box = h("div", { class: keep ? "callout keep" : "callout" }, h("p", {}, h("b", {}, p.text)));
    if (d) {
      const parts = FATES.filter((x) => d[x[2]]);
      const color = (x) => `background:var(--${x[0]})`;
      const bar = parts.map((x) => h("i", { style: `${color(x)};flex:${d[x[2]]}` }));
      const keys = parts.map((x) => h("span", {}, h("i", { style: color(x) }), `${count(d[x[2]])} ${x[1]}`));
      box.append(
        h("div", { class: "keepbar", "aria-hidden": "true" }, ...bar),
        h("div", { class: "keys-in" }, ...keys),
      );
    }
    const facts = [];
    if (p.params_before !== null && p.params_before !== p.params_after) {
      facts.push(`${count(p.params_before)} → ${count(p.params_after)} parameters (${percent(p.share)})`);
    }
    if (d && !keep) facts.push(`${percent(d.energy, 1)} of the squared norm kept`);
    if (p.damage !== null && !keep) facts.push(`predicted relative error ${figure(p.damage)}`);
    if (layer.change && layer.change.relative_error !== null) {
      facts.push(`measured ${figure(layer.change.relative_error)}`);
    }
    if (facts.length) box.append(h("div", { class: "keys-in" }, ...facts.map((text) => h("span", {}, text))));
    if (p.elsewhere) {
      const both = `The verdict speaks of the matrix with its rows and columns evened out; this cut is made in the ${p.basis} basis, and the spikes that it counts are those found there.`;
      box.append(h("p", { class: "why elsewhere" }, both));
    }
    if (p.reason) box.append(h("p", { class: "why" }, h("b", {}, "Why: "), p.reason));
    return [box];
  }

  function figures(layer, view) {
    if (!view) return [];
    const on = (v) => (v === view && layer.views.length > 1 ? "num on" : "num");
    const heads = layer.views.map((v) => h("th", { scope: "col", class: on(v) }, v.basis));
    const line = (name, text) =>
      h("tr", {}, h("th", { scope: "row" }, name), ...layer.views.map((v) => h("td", { class: on(v) }, text(v))));
    const span = (v) => (v.edge_interval ? ` (law ends ${v.edge_interval.map((x) => figure(x)).join(" to ")})` : "");
    const edges = (v) => (v.edge ? `, ${figure(v.largest / v.edge)} × edge` : "");
    const lines = [
      line("Spikes", (v) => `${count(v.spikes)} of ${count(v.values)}`),
      line("Bulk share", (v) => percent(v.bulk_share, 1)),
      line("Squared norm in spikes", (v) => percent(v.spike_energy, 1)),
      line("Edge", (v) => figure(v.edge, 4) + span(v)),
      line("Sigma", (v) => figure(v.sigma)),
      line("Misfit", (v) => figure(v.misfit, 2)),
      line("Largest value", (v) => figure(v.largest, 4) + edges(v)),
      line("Stable rank", (v) => figure(v.stable_rank)),
      ...(layer.low === null ? [] : [line("Below the lower edge", (v) => (v === layer.views[0] ? count(layer.low) : "–"))]),
      ...(view.structured === null ? [] : [line("Structured, in the bulk", (v) => v.structured ? count(v.structured.length) : "–")]),
      line("Measured shape", (v) => `${v.rows} × ${v.cols}`),
    ];
    return [h("table", {}, h("thead", {}, h("tr", {}, h("td", {}), ...heads)), h("tbody", {}, ...lines))];
  }

  function caption(layer, view, scree) {
    if (!view) return "";
    if (view.edge === null) return "No noise law could be fitted to this spectrum.";
    const law = view.law
      ? "The line is the noise law fitted to the bulk"
      : "No noise law is drawn: sigma is not known or too few values are left";
    const marks = scree
      ? "values above the dashed edge are spikes."
      : "dots below the axis are single spikes, ticks are bulk values.";
    const cut = Spectra.cutOf(layer, view)
      ? " What the plan cuts is shaded."
      : layer.plan && view.kept
        ? ` The plan cuts in the ${layer.plan.basis} basis.`
        : "";
    const shown = Spectra.cutOf(layer, view),
      what = [];
    if (view.structured && view.structured.length) what.push("directions of the bulk whose vectors are not random");
    if (shown && shown.named.length) what.push("directions that the plan names and keeps");
    const odd = what.length ? ` Hollow diamonds are ${what.join(", and ")}.` : "";
    return `${law}; ${marks}${cut}${odd}`;
  }

  function notes(layer, view) {
    const out = [];
    if (layer.note) out.push(h("p", { class: "warn" }, layer.note));
    if (layer.zero_rows || layer.zero_cols) {
      const what = [
        layer.zero_rows ? many(layer.zero_rows, "row", "rows") : "",
        layer.zero_cols ? many(layer.zero_cols, "column", "columns") : "",
      ];
      const text = `Left out before measuring, because all zero: ${what.filter(Boolean).join(" and ")}.`;
      out.push(h("p", {}, text));
    }
    if (view && view.method) out.push(h("p", {}, "Estimator: ", h("code", {}, view.method)));
    return out;
  }

  // `state` holds basis, tab and near; `change` is called with what a person picks, and draws again.
  function draw(data, layer, state, change) {
    const view = layer.views.find((v) => v.basis === state.basis) || layer.views[0] || null;
    const compared = Edges.has(data, layer, view);
    const tab = !layer.curves && ["settings", "score"].includes(state.tab) ? "spectrum" : state.tab;
    const scree = tab === "scree",
      chart = $("p-chart");
    $("p-where").textContent = `Layer ${layer.index + 1} of ${data.layers.length}`;
    $("p-name").textContent = layer.name;
    $("p-badges").replaceChildren(...badges(layer));
    $("p-verdict").replaceChildren(...verdictBox(layer));
    $("p-plan").replaceChildren(...planBox(layer));
    document.querySelectorAll("[data-tab]").forEach((b) => {
      const on = b.dataset.tab === tab;
      b.setAttribute("aria-selected", String(on));
      b.tabIndex = on ? 0 : -1;
      b.hidden = ["settings", "score"].includes(b.dataset.tab) && !layer.curves;
    });
    const bases = layer.views.map((v) => [v.basis, v.basis === "plain" ? "Plain" : "Equalised"]);
    // Settings and scores belong to the basis of the verdict.
    choices($("p-views"), Edges.TABS[tab] ? [] : bases, view && view.basis, (basis) => change({ basis }));
    const ranked = scree || tab === "score";
    const ranged = view && tab !== "settings" && (ranked ? view.values >= 60 : Spectra.isFar(view));
    const [close, far] = ranked ? ["First", "All"] : ["Near edge", "Full"];
    const ranges = [
      [true, close],
      [false, far],
    ];
    choices($("p-range"), ranged ? ranges : [], state.near, (near) => change({ near }));
    chart.setAttribute("aria-labelledby", "tab-" + tab);
    // One height for all tabs: a chart keeps the height that it was first drawn with.
    chart.classList.toggle("tall", data.estimators.length > 0);
    chart.hidden = !view;
    $("p-controls").hidden = !view;
    $("p-caption").textContent = Edges.TABS[tab] ? Edges.caption(data, layer, tab) : caption(layer, view, scree);
    if (compared && tab === "spectrum") $("p-caption").textContent += Edges.caption(data, layer, tab);
    $("p-estimators").replaceChildren(...Edges.figures(data, layer));
    $("p-figures").replaceChildren(...figures(layer, view));
    $("p-notes").replaceChildren(...notes(layer, view));
    if (!view) return;
    const lanes = compared ? Edges.lanes(data, layer) : [];
    const drawn = Edges.TABS[tab]
      ? Edges.TABS[tab](chart, data, layer, state.near)
      : scree
        ? Spectra.scree(chart, layer, view, state.near)
        : Spectra.spectrum(chart, layer, view, state.near, lanes);
    drawn.then(() => {
      chart.dataset.drawn = `${layer.index}:${view.basis}:${tab}`;
    });
  }

  return { draw };
})();

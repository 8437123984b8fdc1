// What the parts of the page share: colours of the style sheet, figures in words, elements; axes, lines and notes.
"use strict";

const Theme = (() => {
  const css = (name) =>
    getComputedStyle(document.documentElement)
      .getPropertyValue("--" + name)
      .trim();
  // Plotly reads a little markup in its labels; names of layers must stay what they are.
  const safe = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const figure = (x, digits = 3) =>
    x === null || x === undefined ? "–" : Number(x).toLocaleString("en", { maximumSignificantDigits: digits });
  const count = (x) => (x === null || x === undefined ? "–" : x.toLocaleString("en"));
  const many = (k, one, more) => `${count(k)} ${k === 1 ? one : more}`;
  // As `percent` in figures.py: a share that is neither 0 nor 1 is never rounded to either.
  function percent(x, digits = 0) {
    if (x === null || x === undefined) return "–";
    const step = 10 ** -digits,
      unit = "\u00a0%";
    if (x > 0 && x < 1 && 100 * x < step / 2) return `< ${step}${unit}`;
    if (x > 0 && x < 1 && 100 * x >= 100 - step / 2) return `> ${100 - step}${unit}`;
    return (100 * x).toFixed(digits) + unit;
  }

  // Every text goes in as text: a layer may be called <script>.
  function h(tag, attributes, ...children) {
    const el = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (key === "style") el.style.cssText = value;
      else el.setAttribute(key, value);
    }
    el.append(...children.filter((x) => x !== null && x !== undefined));
    return el;
  }

  const config = { displayModeBar: false, responsive: true, displaylogo: false, scrollZoom: false };

  function layout(margin) {
    const clear = "rgba(0,0,0,0)";
    return {
      paper_bgcolor: clear,
      plot_bgcolor: clear,
      showlegend: false,
      hovermode: "closest",
      dragmode: false,
      font: { family: css("sans"), size: 12, color: css("soft") },
      margin: Object.assign({ l: 48, r: 16, t: 26, b: 40 }, margin),
      hoverlabel: {
        bgcolor: css("ink"),
        bordercolor: css("ink"),
        font: { color: css("paper"), size: 12, family: css("sans") },
        align: "left",
      },
      shapes: [],
      annotations: [],
    };
  }

  // A page scrolls and a chart stays: no axis can be dragged.
  const axis = (title, more) =>
    Object.assign(
      {
        title: { text: title, font: { size: 11.5, color: css("soft") }, standoff: 8 },
        gridcolor: css("line"),
        linecolor: css("line"),
        tickcolor: css("line"),
        tickfont: { color: css("soft"), size: 11 },
        zeroline: false,
        automargin: true,
        fixedrange: true,
      },
      more,
    );

  // Shapes across the whole chart: at one x, at one y, between two x.
  const stroke = (color, width, dash) => ({ color: css(color), width, dash: dash || "solid" });
  const upright = (x, line, more) =>
    Object.assign({ type: "line", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, line }, more);
  const level = (y, line) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line });
  const band = (x0, x1, fillcolor, opacity = 1) => ({
    type: "rect",
    yref: "paper",
    x0,
    x1,
    y0: 0,
    y1: 1,
    fillcolor,
    opacity,
    line: { width: 0 },
    layer: "below",
  });
  const note = (x, y, text, xanchor, color, more) =>
    Object.assign(
      {
        x,
        y,
        text,
        xanchor,
        yref: "paper",
        yanchor: "bottom",
        showarrow: false,
        font: { size: 11.5, color: css(color) },
      },
      more,
    );

  // Light or dark: the system's choice until a person makes another. `redraw` is called after each change.
  function shades(button, redraw) {
    const system = window.matchMedia("(prefers-color-scheme: dark)"),
      root = document.documentElement;
    let chosen = null,
      before = null;
    function paint() {
      const dark = (chosen || (system.matches ? "dark" : "light")) === "dark";
      root.dataset.theme = dark ? "dark" : "light";
      button.textContent = dark ? "◐ Light" : "◐ Dark";
    }
    function choose(theme) {
      chosen = theme;
      paint();
      redraw();
    }
    system.addEventListener("change", () => choose(chosen));
    button.addEventListener("click", () => choose(root.dataset.theme === "dark" ? "light" : "dark"));
    // Paper is white: charts are redrawn in light ink for the print-out, and put back after it.
    window.addEventListener("beforeprint", () => {
      before = chosen;
      choose("light");
    });
    window.addEventListener("afterprint", () => choose(before));
    paint();
  }

  return { css, safe, figure, count, many, percent, h, config, layout, axis, stroke, upright, level, band, note, shades };
})();

"use strict";
// The report page. Data comes from the JSON in #data; what it holds of the user's texts is only ever set as text.
// The state (view, search, selection) is in the address after #, so that a link or a bookmark keeps it.
(() => {
  const report = JSON.parse(document.getElementById("data").textContent);
  const rows = report.rows, total = rows.index.length, labels = report.labels;
  const BLUE = "#0072b2", RED = "#d55e00", PAGE = 60;
  const NAMES = {
    text_caption_similarity: "S_tc raw text–caption similarity", image_text_similarity: "S_xt image–raw text similarity",
    image_caption_similarity: "S_xc image–caption similarity", sample_weight: "W^s sample weight",
    text_weight: "W^t text weight", caption_weight: "W^c caption weight",
    sample_text_weight: "W^s·W^t weight of image and raw text", sample_caption_weight: "W^s·W^c weight of image and caption",
    index: "position in the dataset",
  };
  const VIEWS = [
    ["least trusted raw texts", "text_caption_similarity", "asc"], ["most trusted raw texts", "text_caption_similarity", "desc"],
    ["least trusted captions", "image_caption_similarity", "asc"], ["most trusted captions", "image_caption_similarity", "desc"],
    ["lowest weights in the loss", "sample_text_weight", "asc"],
  ];
  // Of several captions of an image, the one that agrees best with the raw text shows it where raw texts are ranked.
  const TEXT_SCORES = ["text_caption_similarity", "image_text_similarity", "sample_weight", "text_weight", "sample_text_weight"];
  const bestRows = rows.best ? rows.best.filter(Boolean).length : total;
  const mismatched = labels.length ? labels[0] : null;
  const $ = (id) => document.getElementById(id);
  const words = rows.text.map((text, i) => (text + "\n" + rows.caption[i] + "\n" + rows.key[i]).toLowerCase());
  const state = { sort: VIEWS[0][1], order: VIEWS[0][2], q: "", label: "all", ranges: {}, x: "image_text_similarity",
    y: "image_caption_similarity" };
  let picked = null;  // set of row numbers inside a lasso, or null
  let found = [], shown = 0;

  function make(tag, name, text) {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  }
  function options(select, pairs, value) {
    for (const [key, text] of pairs) {
      const option = make("option", "", text);
      option.value = key;
      select.append(option);
    }
    select.value = value;
  }
  const count = (n) => n.toLocaleString("en");
  const brief = (name) => NAMES[name].split(" ")[0];
  const short = (value) => value === null ? "–" : value.toFixed(2);

  // What is shown -----------------------------------------------------------------------------------------------

  function matches(i) {
    if (state.label !== "all") {
      const [name, value] = state.label.split(":");
      if (String(rows[name][i]) !== value) return false;
    }
    for (const name in state.ranges) {
      const [low, high] = state.ranges[name], value = rows[name][i];
      if (value === null || value < low || value > high) return false;
    }
    if (picked && !picked.has(i)) return false;
    return state.q.toLowerCase().split(/\s+/).every((word) => words[i].includes(word));
  }
  function update() {
    const key = rows[state.sort], sign = state.order === "asc" ? 1 : -1;
    found = [];
    const selected = picked !== null || Object.keys(state.ranges).length > 0;
    const bestOnly = rows.best && !selected && !state.q && TEXT_SCORES.includes(state.sort);
    for (let i = 0; i < total; i++) if (matches(i) && (!bestOnly || rows.best[i])) found.push(i);
    found.sort((a, b) => sign * ((key[a] ?? -Infinity) - (key[b] ?? -Infinity)) || a - b);
    $("gallery").replaceChildren();
    shown = 0;
    more();
    $("clear").hidden = !selected;
    const what = rows.best && !bestOnly ? "captions" : "samples";
    let text = `${count(found.length)} of ${count(bestOnly ? bestRows : total)} ${what} in this page match`;
    if (mismatched && found.length) {
      const labelled = found.filter((i) => rows[mismatched][i]).length;
      text += `, ${(100 * labelled / found.length).toFixed(0)} % of them labelled mismatched`;
    }
    const parts = Object.entries(state.ranges).map(([name, [low, high]]) => `${brief(name)} ${short(low)} to ${short(high)}`);
    if (picked) parts.push("inside the lasso");
    $("count").textContent = selected ? `${text}. Selection: ${parts.join(", ")}` : text;
    for (const button of $("views").children) {
      button.setAttribute("aria-pressed", button.dataset.sort === state.sort && button.dataset.order === state.order);
    }
    remember();
  }
  function more() {
    const part = found.slice(shown, shown + PAGE);
    $("gallery").append(...part.map(card));
    shown += part.length;
    $("more").hidden = shown >= found.length;
    document.body.dataset.shown = shown;
    document.body.dataset.found = found.length;
  }
  function card(i) {
    const isMismatched = mismatched === "is_mismatched" && rows.is_mismatched[i];
    const box = make("article", isMismatched ? "card mismatched" : "card");
    box.dataset.index = rows.index[i];
    box.title = `sample ${rows.index[i]}: ${rows.key[i]}\nrecord ${rows.record[i]} of ${rows.shard[i]}\n` +
      report.scores.map((name) => `${brief(name)} ${short(rows[name][i])}`).join("   ");
    const head = make("div", "head"), frame = make("div", "image-box");
    if (rows.image[i]) {
      const image = make("img");
      image.src = "data:image/jpeg;base64," + rows.image[i];
      image.alt = rows.caption[i];
      image.loading = "lazy";
      frame.append(image);
    } else {
      frame.append(make("span", "none", "no image"));
    }
    head.append(isMismatched ? make("span", "tag", "mismatched") : make("span", "number", `#${rows.index[i]}`));
    if (state.sort !== "index") head.append(make("span", "value", short(rows[state.sort][i])));
    const texts = make("div", "texts");
    texts.append(make("div", "text", rows.text[i]));
    const badCaption = rows.is_caption_mismatched && rows.is_caption_mismatched[i];
    texts.append(make("div", badCaption ? "caption bad" : "caption", rows.caption[i] + (badCaption ? " (mismatched)" : "")));
    const bars = make("div", "bars");
    for (const name of ["text_caption_similarity", "image_text_similarity", "image_caption_similarity", "sample_text_weight"]) {
      const value = rows[name][i];
      const bar = make("div", "bar"), fill = make("i");
      fill.style.width = `${100 * Math.min(1, Math.max(0, value ?? 0))}%`;
      bar.append(fill);
      bars.append(make("span", "", brief(name)), bar, make("b", "", short(value)));
    }
    box.append(head, frame, texts, bars);
    return box;
  }

  // Plots -------------------------------------------------------------------------------------------------------

  const CONFIG = { displaylogo: false, responsive: true, modeBarButtons: [["select2d", "lasso2d", "pan2d", "resetScale2d", "toImage"]] };
  const layout = (more) => ({ margin: { l: 46, r: 8, t: 6, b: 38 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "#fff",
    font: { size: 11, color: "#1b1f24" }, modebar: { bgcolor: "rgba(0,0,0,0)", color: "#9aa4ae", activecolor: BLUE }, legend: { orientation: "h", y: 1.12, x: 0 }, ...more });
  const axis = (title, more) => ({ title: { text: title, standoff: 6 }, gridcolor: "#e6eaee", zerolinecolor: "#c3cad1", ...more });

  function scatter() {
    const groups = mismatched
      ? [["matched", BLUE, (i) => !rows[mismatched][i]], ["mismatched", RED, (i) => rows[mismatched][i]]]
      : [["samples", BLUE, () => true]];
    const traces = groups.map(([name, color, belongs]) => {
      const members = [...Array(total).keys()].filter(belongs);
      return { type: "scatter", mode: "markers", name, customdata: members, x: members.map((i) => rows[state.x][i]),
        y: members.map((i) => rows[state.y][i]), text: members.map((i) => plain(rows.text[i])), hoverinfo: "text",
        marker: { color, size: 5, opacity: 0.5, symbol: members.map((i) => rows.random[i] ? "circle" : "circle-open") }, selected: { marker: { opacity: 0.9 } },
        unselected: { marker: { opacity: 0.08 } } };
    });
    return Plotly.react($("scatter"), traces, layout({ dragmode: "select", hovermode: "closest", uirevision: state.x + state.y,
      xaxis: axis(NAMES[state.x]), yaxis: axis(NAMES[state.y]), showlegend: groups.length > 1 }), CONFIG);
  }
  // Plotly reads a few tags (<b>, <a href>) in its labels: none may come from the data.
  const plain = (text) => text.slice(0, 80).replace(/[<>&]/g, (letter) => ({ "<": "‹", ">": "›", "&": "＆" })[letter]);

  function listen() {
    $("scatter").on("plotly_selected", (event) => {
      if (!event || (!event.range && !event.lassoPoints)) return;
      delete state.ranges[state.x];
      delete state.ranges[state.y];
      picked = null;
      if (event.range) {
        state.ranges[state.x] = ordered(event.range.x);
        state.ranges[state.y] = ordered(event.range.y);
      } else {
        picked = new Set(event.points.map((point) => point.customdata));
      }
      update();
    });
    $("scatter").on("plotly_deselect", clear);
  }
  const ordered = ([a, b]) => a < b ? [a, b] : [b, a];
  function clear() {
    picked = null;
    state.ranges = {};
    for (const plot of document.querySelectorAll("#scatter, .histogram")) {
      Plotly.restyle(plot, { selectedpoints: null });
      Plotly.relayout(plot, { selections: [] });
    }
    update();
  }

  function drawHistograms() {
    for (const name of report.scores) {
      const { edges, ...groups } = report.histograms[name];
      const width = edges[1] - edges[0], middles = edges.slice(1).map((edge) => edge - width / 2);
      const colors = { matched: BLUE, mismatched: RED, all: BLUE };
      const traces = Object.entries(groups).map(([group, counts]) => ({ type: "bar", name: group, x: middles, y: counts,
        width, marker: { color: colors[group], opacity: 0.6, line: { width: 0 } }, hovertemplate: "%{x:.3f}: %{y}<extra></extra>" }));
      const log = name.endsWith("weight");  // most weights are 1: on a linear axis that bar hides the others
      const box = make("div", "histogram");
      $("histograms").append(box);
      Plotly.newPlot(box, traces, layout({ barmode: "overlay", dragmode: "select", selectdirection: "h", showlegend: false,
        margin: { l: 40, r: 6, t: 4, b: 34 }, xaxis: axis(NAMES[name]), yaxis: axis("", log ? { type: "log", dtick: 1 } : { rangemode: "tozero" }) }),
      { ...CONFIG, displayModeBar: false });
      box.on("plotly_selected", (event) => {
        if (!event || !event.range) return;
        state.ranges[name] = ordered(event.range.x);
        update();
      });
      box.on("plotly_deselect", () => {
        delete state.ranges[name];
        update();
      });
    }
  }
  function drawCurves() {
    const { scores, fraction } = report.curves[$("curve-label").value];
    const names = ["text_caption_similarity", "image_text_similarity", "sample_weight", "sample_text_weight", "image_caption_similarity"];
    const styles = ["solid", "dash", "dot", "dashdot", "longdash"];
    const colors = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#555"];
    const plot = (key, measure, box, x, y, chance, legend) => {
      const traces = names.map((name, k) => ({ type: "scatter", mode: "lines", x: scores[name][key][0], y: scores[name][key][1],
        name: `${brief(name)} ${scores[name][measure].toFixed(2)}`,
        line: { color: colors[k], dash: styles[k], width: 2 }, hovertemplate: "%{x:.0f} %, %{y:.0f} %" }));
      traces.push({ type: "scatter", mode: "lines", x: [0, 100], y: chance, name: "chance", line: { color: "#aaa", width: 1 },
        hoverinfo: "skip" });
      Plotly.react($(box), traces, layout({ xaxis: axis(x, { range: [0, 100] }), yaxis: axis(y, { range: [0, 101] }),
        legend: { ...legend, y: 0.04, yanchor: "bottom", bgcolor: "rgba(255,255,255,.75)", font: { size: 10 } } }),
      { ...CONFIG, displayModeBar: false });
    };
    plot("roc", "auc", "roc", "false positives, % of matched", "mismatched found, %", [0, 100],
      { x: 0.98, xanchor: "right" });
    plot("precision_recall", "average_precision", "precision", "mismatched found, %", "precision, %",
      [100 * fraction, 100 * fraction], { x: 0.02, xanchor: "left" });
  }

  // State in the address ----------------------------------------------------------------------------------------

  function remember() {
    const parts = new URLSearchParams();
    for (const name of ["sort", "order", "q", "label", "x", "y"]) if (state[name]) parts.set(name, state[name]);
    for (const name in state.ranges) parts.append("range", [name, ...state.ranges[name].map((v) => +v.toFixed(4))].join(","));
    try {
      history.replaceState(null, "", "#" + parts);
    } catch (error) {
      // Some browsers do not let a page from a file change its address: then the state is not kept there.
    }
  }
  function recall() {
    const parts = new URLSearchParams(location.hash.slice(1));
    const known = (name) => Object.hasOwn(NAMES, name) && Object.hasOwn(rows, name);
    for (const name of ["sort", "x", "y"]) if (known(parts.get(name))) state[name] = parts.get(name);
    if (["asc", "desc"].includes(parts.get("order"))) state.order = parts.get("order");
    state.q = parts.get("q") || "";
    const label = parts.get("label") || "all";
    if ([...$("label").options].some((option) => option.value === label)) state.label = label;
    for (const text of parts.getAll("range")) {
      const [name, low, high] = text.split(",");
      if (known(name) && isFinite(low) && isFinite(high)) state.ranges[name] = ordered([+low, +high]);
    }
  }

  // Start -------------------------------------------------------------------------------------------------------

  function about() {
    const data = report.data, run = report.checkpoints;
    let text = `${count(data.samples)} samples`;
    if (run.length) {
      const recipe = run[0].recipe, steps = run.map((one) => one.step);
      const off = ["sample", "text", "caption"].filter((name) => !recipe[`use_${name}_weight`]);
      text += `, scored at step${steps.length > 1 ? "s" : ""} ${steps.join(", ")} with γ_s = ${recipe.gamma_sample}, ` +
        `γ_p = ${recipe.gamma_pair}` + (off.length ? `, without ${off.join(", ")} weight` : "");
    }
    if (total < data.samples) {
      text += `. Histograms and curves are of all ${rows.best ? "captions" : "samples"}; the points and images are ${count(report.random_samples)} ` +
        "random ones (filled points) and both ends of the rankings (hollow points)";
    }
    $("about").textContent = text + ".";
  }
  function start() {
    about();
    const pairs = report.scores.map((name) => [name, NAMES[name]]);
    const subjects = { is_mismatched: "raw texts", is_caption_mismatched: "captions" };
    options($("label"), [["all", "all samples"], ...labels.flatMap((name) => [
      [`${name}:true`, `mismatched ${subjects[name]}`], [`${name}:false`, `matched ${subjects[name]}`]])], "all");
    $("label-box").hidden = !labels.length;
    recall();
    $("label").value = state.label;
    options($("sort"), [...pairs, ["index", NAMES.index]], state.sort);
    options($("x"), pairs, state.x);
    options($("y"), pairs, state.y);
    $("order").value = state.order;
    $("search").value = state.q;
    for (const [text, sort, order] of VIEWS) {
      const button = make("button", "", text);
      button.type = "button";
      Object.assign(button.dataset, { sort, order });
      button.addEventListener("click", () => {
        Object.assign(state, { sort, order });
        $("sort").value = sort;
        $("order").value = order;
        update();
      });
      $("views").append(button);
    }
    for (const name of ["sort", "order", "label"]) {
      $(name).addEventListener("change", (event) => { state[name] = event.target.value; update(); });
    }
    for (const name of ["x", "y"]) {
      $(name).addEventListener("change", (event) => { clear(); state[name] = event.target.value; remember(); scatter(); });
    }
    $("search").addEventListener("input", (event) => { state.q = event.target.value; update(); });
    $("clear").addEventListener("click", clear);
    $("more").addEventListener("click", more);
    update();
    scatter().then(() => {
      listen();
      document.body.dataset.ready = "yes";
    });
    const known = labels.filter((name) => report.curves[name].scores);
    if (known.length) {
      $("curves").hidden = false;
      options($("curve-label"), known.map((name) => [name, subjects[name]]), known[0]);
      $("curve-label").hidden = known.length < 2;
      $("curve-label").addEventListener("change", drawCurves);
      drawCurves();
    }
    drawHistograms();
  }
  start();
})();

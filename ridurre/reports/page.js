"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const byId = (id) => document.getElementById(id);
  const chartBox = (name) => document.querySelector(`[data-chart="${name}"]`);
  const views = {};

  // Charts: the page's colours, no network, no code from strings.

  function theme() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = {
      labelColor: colour("--muted"), titleColor: colour("--muted"), gridColor: colour("--line"),
      domainColor: colour("--line"), tickColor: colour("--line"), labelFontSize: 12,
      titleFontSize: 13, titleFontWeight: 500,
    };
    const text = { labelColor: colour("--text"), titleColor: colour("--text"), labelFontSize: 13 };
    return {
      background: "transparent", font: getComputedStyle(document.body).fontFamily,
      axis, view: { stroke: "transparent" }, header: text,
      legend: { ...text, orient: "bottom", columns: 3, labelLimit: 0 },
      text: { color: colour("--text"), fontSize: 12 },
    };
  }

  async function draw(name, spec) {
    const result = await vegaEmbed(chartBox(name), spec, {
      actions: false, ast: true, config: theme(), tooltip: { theme: dark.matches ? "dark" : "light" },
    });
    if (views[name]) views[name].finalize();
    views[name] = result.view;
    return result.view;
  }

  // The table of layers: a search, a choice, and sorting by any column.

  function filterLayers() {
    const text = byId("layer-search").value.toLowerCase();
    const status = byId("layer-status").value;
    const rows = [...byId("layer-table").tBodies[0].rows];
    let shown = 0;
    for (const row of rows) {
      const fits = row.dataset.name.includes(text) && (!status || row.dataset.status === status);
      row.hidden = !fits;
      row.style.display = fits ? "" : "none";
      shown += fits;
    }
    byId("layer-count").textContent = `${shown} of ${rows.length} layers`;
  }

  function sortLayers(heading) {
    const column = heading.cellIndex;
    const rising = heading.getAttribute("aria-sort") === "descending";
    for (const other of heading.parentNode.cells) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.sort;
    const order = (a, b) => value(a) - value(b) || String(value(a)).localeCompare(value(b));
    const body = byId("layer-table").tBodies[0];
    const rows = [...body.rows].sort((a, b) => (rising ? order(a, b) : order(b, a)));
    body.append(...rows);
  }

  if (byId("layer-table")) {
    byId("layer-search").addEventListener("input", filterLayers);
    byId("layer-status").addEventListener("change", filterLayers);
    for (const heading of byId("layer-table").tHead.rows[0].cells)
      heading.addEventListener("click", () => sortLayers(heading));
    filterLayers();
  }

  // The network: colours, a search that goes to what it finds, zoom.

  const COLUMN = 250; // pixels that a column with legible names takes
  const [low, high] = [-0.7, specs.network ? specs.network.usermeta.levels - 0.3 : 0];

  const columns = specs.network ? specs.network.usermeta.columns : 0;

  async function zoomTo(x, y) {
    const view = views.network;
    await view.signal("pan_x", x).signal("pan_y", y).runAsync();
  }

  function domains() {
    const view = views.network;
    return [view.scale("x").domain(), view.scale("y").domain()];
  }

  async function zoomBy(factor) {
    const around = ([a, b]) => [(a + b) / 2 - (b - a) * factor / 2, (a + b) / 2 + (b - a) * factor / 2];
    const [x, y] = domains();
    await zoomTo(around(x), around(y));
  }

  function legible() {
    const fitting = Math.max(1, chartBox("network").clientWidth / COLUMN);
    return [0, Math.min(fitting, Math.max(columns, 1.5))];
  }

  async function searchNodes() {
    const text = byId("node-search").value;
    const found = specs.network.datasets.nodes.filter((n) => n.layer.toLowerCase().includes(text.toLowerCase()));
    byId("node-count").textContent = text ? `${found.length} found` : "";
    await views.network.signal("search", text).runAsync();
    if (!text || !found.length) return;
    const [[a, b], [top, bottom]] = domains();
    const { x, y } = found[0];
    if (x >= a && x <= b && y >= Math.min(top, bottom) && y <= Math.max(top, bottom)) return;
    await zoomTo([x - (b - a) / 2, x + (b - a) / 2], [low, high]);
  }

  const colours = () => document.querySelector("[name=by]:checked").value;

  async function colourNodes() {
    byId("cut-legend").hidden = colours() !== "by_cut";
    await views.network.signal("by", colours()).runAsync();
  }

  async function drawNetwork() {
    const spec = structuredClone(specs.network);
    for (const layer of spec.layer) layer.encoding.x.scale.domain = legible();
    const now = { search: byId("node-search").value, by: colours() };
    for (const param of spec.params) if (param.name in now) param.value = now[param.name];
    await draw("network", spec);
  }

  if (specs.network) {
    byId("node-search").addEventListener("input", searchNodes);
    for (const choice of document.querySelectorAll("[name=by]"))
      choice.addEventListener("change", colourNodes);
    byId("zoom-in").addEventListener("click", () => zoomBy(0.7));
    byId("zoom-out").addEventListener("click", () => zoomBy(1 / 0.7));
    byId("zoom-all").addEventListener("click", () => zoomTo([-0.02 * columns, columns], [low, high]));
  }

  // Importances: small pictures of the groups that are looked for.

  const MOST = 12;

  async function drawImportances() {
    const text = byId("group-search").value.toLowerCase();
    const all = specs.importances.datasets.rows;
    const total = new Set(all.map((row) => row.group)).size;
    const groups = [...new Set(all.filter((r) => r.title.toLowerCase().includes(text)).map((r) => r.group))];
    const shown = new Set(groups.slice(0, MOST));
    const more = groups.length > MOST ? `the first ${MOST} of ${groups.length} groups; search for others` : `${groups.length} of ${total} groups`;
    byId("group-count").textContent = more;
    const rows = all.filter((row) => shown.has(row.group));
    const columns = Math.max(1, Math.min(shown.size || 1, Math.floor(chartBox("importances").clientWidth / 285)));
    await draw("importances", { ...specs.importances, columns, datasets: { rows } });
  }

  if (specs.importances) byId("group-search").addEventListener("input", drawImportances);

  async function drawAll() {
    for (const name of Object.keys(specs)) {
      if (name === "network") await drawNetwork();
      else if (name === "importances") await drawImportances();
      else await draw(name, specs[name]);
    }
    document.documentElement.dataset.ready = "yes";
  }

  dark.addEventListener("change", drawAll);
  requestAnimationFrame(() => setTimeout(drawAll)); // what can be read comes first
})();

"use strict";
// The page of a report: a folding tree of modules, what is known of the selected one, panels.
// Names reach the page as text nodes and attributes alone, never as markup.

const ROLES = ["fprop", "dgrad", "wgrad"];
const KINDS = ["operation", "product", "inserted", "input", "submodule", "outside"];
const HOWS = ["sparse", "simulate", "dense"];
const MARKS = { sparse: "\u25cf", simulate: "\u25d0", dense: "\u25cb" };
const LETTERS = { activation: "X", weight: "W", gradient: "dY" };
const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const counted = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
const percent = (x) => (100 * x).toFixed(1) + " %";
const time = (us) => (us >= 1000 ? (us / 1000).toFixed(2) + " ms" : us.toFixed(0) + " us");
const components = (path) => path.match(/(?:\{[^}]*\}|[^.])+/g) || []; // "layers.{0..79}.fc" has three
const size = (s) => (s.flops || 0) * s.runs; // of a step; unknown where a size is data
const flops = (x) => (x === null ? "unknown" : x.toExponential(2));
const planned = (s) => (s.execution === "sparse" ? s.sparse_us : s.dense_us);

function what(s) {
  if (s.pruned === null) return "dense";
  const exact = s.backward === "exact" ? " exact" : "";
  return `${LETTERS[s.pruned]} ${s.format} ${s.method}${exact}`;
}

function chip(s, count) {
  const text = `${MARKS[s.execution]} ${count > 1 ? `${count}\u00d7 ` : ""}${what(s)}`;
  const why = [s.rule, ...s.reasons.map((r) => r[1])].filter(Boolean).join("; ");
  return make("span", { className: `chip ${s.execution}`, title: `${s.execution}: ${why}` }, text);
}

function bar(parts, whole) {
  return HOWS.map((how) => {
    const piece = make("i", { className: how, title: `${how}: ${percent(parts[how] / (whole || 1))}` });
    piece.style.width = `${(100 * parts[how]) / (whole || 1)}%`;
    return piece;
  });
}

// -- the tree: modules of all graphs by their paths ------------------------------------------

function treeOf(data) {
  const root = { path: "", name: "(model)", children: new Map(), sites: [], graph: null, depth: 0 };
  const at = (path) => {
    let here = root;
    for (const part of components(path)) {
      if (!here.children.has(part)) {
        const inner = here.path ? `${here.path}.${part}` : part;
        here.children.set(part, { path: inner, name: part, children: new Map(), sites: [], graph: null, depth: here.depth + 1, parent: here });
      }
      here = here.children.get(part);
    }
    return here;
  };
  data.graphs.forEach((graph, g) => {
    graph.modules.forEach((path, m) => {
      const here = at(path);
      here.where = here.where || [];
      here.where.push([g, m]);
    });
    for (const s of graph.sites) at(graph.modules[s.module]).sites.push(s);
  });
  const sum = (node, order) => {
    node.all = [...node.sites];
    for (const child of node.children.values()) node.all.push(...sum(child, order).all);
    node.flops = node.all.reduce((x, s) => x + size(s), 0);
    node.time = node.all.reduce((x, s) => x + s.runs * (planned(s) || 0), 0);
    node.parts = Object.fromEntries(HOWS.map((h) => [h, 0]));
    for (const s of node.all) node.parts[s.execution] += size(s);
    node.order = order.next++;
    node.text = [node.path, ...node.sites.flatMap((s) => [s.rule, s.op, s.execution, ...s.reasons.flat()])].join("\n").toLowerCase();
    return node;
  };
  return sum(root, { next: 0 });
}

class Tree {
  constructor(data, choose) {
    this.root = treeOf(data);
    this.whole = this.root.flops;
    this.choose = choose;
    this.open = new Set([""]);
    this.body = $("tree").tBodies[0];
    this.selected = this.root;
    // A chain of single children is unfolded at once.
    for (let n = this.root; n; n = n.children.size === 1 ? [...n.children.values()][0] : null) this.open.add(n.path);
    this.body.addEventListener("click", (e) => {
      const row = e.target.closest("tr");
      if (!row) return;
      this.select(row.module, !e.target.classList.contains("twist"));
      if (e.target.classList.contains("twist")) this.toggle(row.module);
    });
    this.body.addEventListener("keydown", (e) => this.key(e));
    $("filter").addEventListener("input", () => this.show());
    $("sort").addEventListener("change", () => this.show());
    $("unfold").addEventListener("click", () => {
      const all = this.open.size > 1;
      this.open = new Set([""]);
      if (!all) this.each(this.root, (n) => this.open.add(n.path));
      this.show();
    });
    this.show();
  }

  each(node, visit) {
    visit(node);
    for (const child of node.children.values()) this.each(child, visit);
  }

  sorted(node) {
    const by = $("sort").value;
    const children = [...node.children.values()].filter((c) => c.all.length);
    return by === "order" ? children : children.sort((a, b) => b[by] - a[by]);
  }

  rows() {
    const wanted = $("filter").value.trim().toLowerCase();
    const found = [];
    const visit = (node) => {
      const start = found.length;
      const own = !wanted || node.text.includes(wanted);
      found.push(node);
      let inside = 0;
      if (wanted || this.open.has(node.path)) for (const child of this.sorted(node)) inside += visit(child);
      if (!own && !inside) found.length = start;
      return own || inside ? 1 : 0;
    };
    visit(this.root);
    return found;
  }

  show() {
    const rows = this.rows();
    this.body.replaceChildren(...rows.map((node) => this.row(node)));
    const count = $("filter").value.trim() ? counted(rows.length, "module") : "";
    $("shown").textContent = rows.length ? count : "nothing matches";
    $("unfold").textContent = this.open.size > 1 ? "fold all" : "unfold all";
  }

  row(node) {
    const children = this.sorted(node).length;
    const open = this.open.has(node.path);
    const twist = make("span", { className: "twist" }, children ? (open ? "\u25be" : "\u25b8") : "");
    const first = make("td", { title: node.path }, twist, node.name);
    first.style.setProperty("--depth", node.depth);
    const cells = ROLES.map((role) => {
      const sites = (open ? node.sites : node.all).filter((s) => s.role === role);
      const groups = new Map();
      for (const s of sites) {
        const key = `${s.execution} ${what(s)}`;
        groups.set(key, [s, (groups.get(key) || [0, 0])[1] + 1]);
      }
      return make("td", {}, ...[...groups.values()].map(([s, count]) => chip(s, count)));
    });
    const share = make("div", { className: "bar", title: `${percent(node.flops / (this.whole || 1))} of all FLOPs${node.time ? ", " + time(node.time) : ""}` }, ...bar(node.parts, this.whole));
    const row = make("tr", { tabIndex: node === this.selected ? 0 : -1 }, first, ...cells, make("td", {}, share));
    row.setAttribute("role", "row");
    row.setAttribute("aria-level", node.depth + 1);
    if (children) row.setAttribute("aria-expanded", open);
    row.setAttribute("aria-selected", node === this.selected);
    row.module = node;
    return row;
  }

  toggle(node, open = !this.open.has(node.path)) {
    if (!node.children.size) return;
    if (open) this.open.add(node.path);
    else this.open.delete(node.path);
    this.show();
    this.focus();
  }

  select(node, focus = true) {
    for (let n = node.parent; n; n = n.parent) if (!this.open.has(n.path)) { this.open.add(n.path); this.stale = true; }
    this.selected = node;
    if (this.stale) { this.stale = false; this.show(); }
    for (const row of this.body.rows) {
      row.setAttribute("aria-selected", row.module === node);
      row.tabIndex = row.module === node ? 0 : -1;
    }
    if (focus) this.focus();
    this.choose(node);
  }

  focus() {
    const row = [...this.body.rows].find((r) => r.module === this.selected);
    if (row) row.focus({ preventScroll: false });
  }

  key(e) {
    const rows = [...this.body.rows], at = rows.findIndex((r) => r.module === this.selected);
    const node = this.selected, open = this.open.has(node.path);
    const move = (i) => rows[i] && this.select(rows[i].module);
    const keys = {
      ArrowDown: () => move(at + 1), ArrowUp: () => move(at - 1),
      Home: () => move(0), End: () => move(rows.length - 1),
      ArrowRight: () => (open || !node.children.size ? move(at + 1) : this.toggle(node, true)),
      ArrowLeft: () => (open && node.children.size ? this.toggle(node, false) : node.parent && this.select(node.parent)),
      Enter: () => this.toggle(node), " ": () => this.toggle(node),
    };
    if (keys[e.key]) { keys[e.key](); e.preventDefault(); }
  }
}

// -- the graph of one module ---------------------------------------------------------------

const WIDTH = 150, HEIGHT = 40, ACROSS = 172, DOWN = 74;

class Graph {
  constructor(data, openModule, openNode) {
    this.data = data;
    this.svg = $("graph");
    this.view = { x: 0, y: 0, scale: 1 };
    this.version = 1; // 0 before, 1 after
    this.backward = 0;
    this.svg.addEventListener("wheel", (e) => { e.preventDefault(); this.zoom(Math.exp(-e.deltaY / 400), e.offsetX, e.offsetY); }, { passive: false });
    let from = null;
    this.svg.addEventListener("pointerdown", (e) => { from = { x: e.clientX - this.view.x, y: e.clientY - this.view.y, moved: false }; });
    this.svg.addEventListener("pointermove", (e) => {
      if (!from || !e.buttons) return;
      const x = e.clientX - from.x, y = e.clientY - from.y;
      from.moved = from.moved || Math.hypot(x - this.view.x, y - this.view.y) > 3;
      if (from.moved) { Object.assign(this.view, { x, y }); this.place(); }
    });
    this.svg.addEventListener("click", (e) => {
      const moved = from && from.moved;
      from = null;
      const box = e.target.closest("g[data-box]");
      if (moved || !box) return;
      const [, , , node, module] = this.boxes[Number(box.dataset.box)];
      if (module !== null) openModule(this.graph, module);
      else if (node !== null) { this.mark(box); openNode(this.graph, this.version, node); }
    });
    this.svg.addEventListener("keydown", (e) => {
      const middle = [this.svg.clientWidth / 2, this.svg.clientHeight / 2];
      const keys = { "+": () => this.zoom(1.25, ...middle), "-": () => this.zoom(0.8, ...middle), 0: () => this.fit() };
      const steps = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
      if (keys[e.key]) keys[e.key]();
      else if (steps[e.key]) { this.view.x += steps[e.key][0]; this.view.y += steps[e.key][1]; this.place(); }
      else return;
      e.preventDefault();
    });
  }

  show(graph, module) {
    this.graph = graph;
    this.module = module;
    const views = this.data.graphs[graph].drawings[module];
    if (!views[2 * this.backward + this.version][0].length && views[2 * (1 - this.backward) + this.version][0].length) this.backward = 1 - this.backward;
    const [boxes, edges] = views[2 * this.backward + this.version];
    this.boxes = boxes;
    const at = (i) => [boxes[i][5] * ACROSS, boxes[i][6] * DOWN];
    const arrow = draw("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" }, draw("path", { d: "M0 0L8 4L0 8z" }));
    const lines = edges.map(([a, b]) => {
      const [x1, y1] = at(a), [x2, y2] = at(b), down = y2 > y1;
      const start = y1 + (down ? HEIGHT : 0), end = y2 + (down ? 0 : HEIGHT), bend = (end - start) / 2;
      return draw("path", { d: `M${x1 + WIDTH / 2} ${start}C${x1 + WIDTH / 2} ${start + bend} ${x2 + WIDTH / 2} ${end - bend} ${x2 + WIDTH / 2} ${end}`, "marker-end": "url(#arrow)" });
    });
    const groups = boxes.map(([kind, title, detail, node, inner], i) => {
      const [x, y] = at(i);
      const g = draw("g", { class: KINDS[kind], "data-box": i, transform: `translate(${x} ${y})` });
      if (inner !== null) g.setAttribute("data-opens", inner);
      if (node !== null) g.setAttribute("data-node", node);
      const tip = draw("title", {});
      tip.textContent = detail ? `${title}\n${detail}` : title;
      const first = draw("text", { x: WIDTH / 2, y: detail ? 17 : 24 }), second = draw("text", { x: WIDTH / 2, y: 31, class: "second" });
      first.textContent = PATHS.has(KINDS[kind]) ? ending(title, 21) : short(title, 21);
      second.textContent = short(detail, 25);
      g.append(draw("rect", { width: WIDTH, height: HEIGHT, rx: 6 }), first, second, tip);
      return g;
    });
    this.layer = draw("g", {}, ...lines, ...groups);
    this.svg.replaceChildren(draw("defs", {}, arrow), this.layer);
    this.size = [Math.max(0, ...boxes.map((b) => b[5])) * ACROSS + WIDTH, Math.max(0, ...boxes.map((b) => b[6])) * DOWN + HEIGHT];
    this.fit();
    this.buttons(views);
  }

  buttons(views) {
    const button = (text, pressed, act, disabled = false) => make("button", { type: "button", disabled, "aria-pressed": pressed, onclick: act }, text);
    const again = (change) => () => { change(); this.show(this.graph, this.module); };
    $("views").replaceChildren(
      button("forward", !this.backward, again(() => (this.backward = 0)), !views[this.version][0].length),
      button("backward", !!this.backward, again(() => (this.backward = 1)), !views[2 + this.version][0].length),
      button("before", !this.version, again(() => (this.version = 0))),
      button("after", !!this.version, again(() => (this.version = 1))),
      button("fit", false, () => this.fit()),
      make("span", { className: "soft" }, this.boxes.length ? `${this.boxes.length} ${this.boxes.length === 1 ? "box" : "boxes"}; dashed: inserted` : "nothing runs here"),
    );
  }

  mark(box) {
    for (const g of this.layer.querySelectorAll(".chosen")) g.classList.remove("chosen");
    box.classList.add("chosen");
  }

  // Never so small that no word can be read: then the top is shown, and the rest is a drag away.
  fit() {
    const [w, h] = this.size, width = this.svg.clientWidth || 500, height = this.svg.clientHeight || 350;
    const scale = Math.min(1.2, Math.max(0.55, Math.min((width - 24) / w, (height - 24) / h)));
    this.view = { scale, x: w * scale > width ? 12 : (width - w * scale) / 2, y: h * scale > height ? 12 : (height - h * scale) / 2 };
    this.place();
  }

  zoom(factor, x, y) {
    const scale = Math.min(3, Math.max(0.04, this.view.scale * factor)), by = scale / this.view.scale;
    this.view = { scale, x: x - (x - this.view.x) * by, y: y - (y - this.view.y) * by };
    this.place();
  }

  place() {
    this.layer.setAttribute("transform", `translate(${this.view.x} ${this.view.y}) scale(${this.view.scale})`);
  }
}

const short = (text, most) => (text.length > most ? text.slice(0, most - 1) + "\u2026" : text);

// Of a path, the end says more: "from \u2026h.1.attn".
const PATHS = new Set(["input", "outside"]);
function ending(text, most) {
  const word = /^(from|to) /.exec(text)?.[0] ?? "";
  return text.length > most ? `${word}\u2026${text.slice(word.length + 1 - most)}` : text;
}

// -- what is selected ------------------------------------------------------------------------

function table(heads, rows) {
  const head = make("tr", {}, ...heads.map((h) => make("th", { scope: "col" }, h)));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows.map((r) => make("tr", {}, ...r.map((c) => make("td", {}, c ?? ""))))));
}

function products(data, node) {
  if (!node.sites.length) return make("p", { className: "soft" }, node.all.length ? `${counted(node.all.length, "product")} inside` : "no product");
  const line = data.policy.split("\n");
  return table(["role", "batch x M x N x K", "what", "why"], node.sites.map((s) => {
    const times = planned(s) === null ? [] : [make("br"), `${time(s.dense_us)} dense${s.execution === "sparse" ? `, ${time(s.sparse_us)} sparse` : ""}`];
    const why = make("span", {}, s.rule || "no rule");
    for (const [code, text] of s.reasons) why.append(make("br"), make("code", {}, code), ` ${text}`);
    const unit = data.graphs[s.graph].units.find((u) => u[0] === s.unit);
    if (unit) why.append(make("br"), make("span", { className: "soft" }, `unit ${unit[0]}: ${unit[1]}`));
    const sizes = make("span", {}, s.sizes.join(" x "), make("br"), make("span", { className: "soft" }, `${s.dtype}, ${flops(s.flops)} FLOPs${s.runs > 1 ? `, ${s.runs} times` : ""}`), ...times);
    return [`${s.op} ${s.role}`, sizes, chip(s, 1), why];
  }));
}

function describe(data, graph, version, number) {
  const [name, target, shape, source, inserted, sites] = data.graphs[graph][version ? "after" : "before"][number];
  const parts = [make("strong", {}, target), ` ${name} `, make("code", {}, shape)];
  if (source) parts.push(make("br"), `from ${source}`);
  if (inserted) parts.push(make("br"), "put there by nmcompile");
  for (const number of sites) {
    const s = data.graphs[graph].sites.find((x) => x.site === number);
    if (s) parts.push(make("br"), `product: ${s.role} `, chip(s, 1));
  }
  $("node").replaceChildren(...parts);
}

// -- panels ------------------------------------------------------------------------------------

function panel(title, id, ...content) {
  return make("details", { id }, make("summary", {}, title), ...content);
}

function panels(data, sites, openFilter) {
  const found = [];
  const unused = data.unused.length ? `, ${data.unused.length} of your rules decided nothing` : "";
  found.push(panel(`Policy${unused}`, "policy", ...data.unused.map((r) => make("p", {}, `${r} decided nothing`)), make("pre", {}, data.policy)));
  if (data.notes.length) found.push(panel("Notes", "notes", ...data.notes.map(([code, text]) => make("p", {}, make("code", {}, code), ` ${text}`))));
  const dense = new Map();
  for (const s of sites.filter((x) => x.execution === "dense")) {
    for (const [code, text] of s.reasons) {
      const entry = dense.get(code) || { text, count: 0, flops: 0 };
      entry.count += 1;
      entry.flops += size(s);
      dense.set(code, entry);
    }
  }
  if (dense.size) {
    const rows = [...dense].sort((a, b) => b[1].flops - a[1].flops).map(([code, e]) => [make("a", { href: "#tree", onclick: () => openFilter(code) }, code), String(e.count), percent(e.flops / (data.totals.flops || 1)), e.text]);
    found.push(panel(`Left dense, by reason: ${counted(sites.filter((s) => s.execution === "dense").length, "product")}`, "dense", table(["code", "products", "of all FLOPs", "the first one's reason"], rows)));
  }
  if (data.skipped.length) found.push(panel(`Multiplies, and no policy can reach it: ${data.skipped.length}`, "skipped", table(["operator", "module", "direction", "why"], data.skipped.map((s) => [s[0], s[1] || "(model)", s[2] ? "backward" : "forward", `${s[3]}: ${s[4]}`]))));
  if (data.eager.length) found.push(panel(`In no graph, runs eagerly and dense: ${percent(data.totals.eager_share)} of the step's multiplying`, "eager", table(["operator", "module", "calls", "FLOPs", "why"], data.eager.map((r) => [r[0], r[1] || "(model)", String(r[2]), flops(r[3]), r[4]]))));
  if (data.uncompiled.length) found.push(panel(`In no compiled graph: ${counted(data.uncompiled.length, "layer")}`, "uncompiled", make("p", {}, data.uncompiled.join(", "))));
  if (data.saved.length) {
    const bytes = data.saved.reduce((x, s) => x + s[3], 0);
    found.push(panel(`Saved for the backward: ${counted(bytes, "byte")} in ${counted(data.saved.length, "tensor")}`, "saved", table(["tensor", "shape", "dtype", "bytes", ""], data.saved.map((s) => [s[0], s[1], s[2], s[3].toLocaleString("en"), s[4] ? "compressed" : ""]))));
  }
  if (data.kernels.length) {
    const links = data.kernels.map(([name], i) => make("li", {}, make("a", { href: `#kernel-${i}` }, name)));
    found.push(panel(`Generated kernels: ${data.kernels.length}`, "kernels", make("ul", {}, ...links), ...data.kernels.map(([name, source], i) => make("div", {}, make("h2", { id: `kernel-${i}` }, name), make("pre", {}, source)))));
  }
  $("panels").replaceChildren(...found);
}

// -- the page ----------------------------------------------------------------------------------

function summary(data, sites) {
  const t = data.totals, left = sites.reduce((x, s) => x + (s.execution === "sparse" ? size(s) : 0), 0);
  const parts = [t.sites ? `${t.pruned_sites} of ${t.sites} products pruned: ${percent(t.pruned_share)} of ${t.flops.toExponential(2)} FLOPs` : "this model has no product"];
  if (left) parts.push(`${percent(left / t.flops)} in sparse products`);
  if (t.dense_us && t.planned_us) parts.push(`predicted: ${time(t.dense_us)} dense, ${time(t.planned_us)} as decided (${(t.dense_us / t.planned_us).toFixed(2)}x)`);
  for (const [, text] of data.notes) parts.push(text);
  if (data.target) parts.push(`planned for ${data.target.gpu}${data.cudaGraphs ? " in CUDA graphs" : ""}`);
  $("summary").textContent = parts.join("; ");
  $("legend").replaceChildren(...HOWS.map((how) => make("span", {}, `${MARKS[how]} ${{ sparse: "sparse tensor cores", simulate: "simulated: masked, then dense", dense: "dense" }[how]}`)), make("span", {}, "X activation, W weight, dY gradient"));
}

async function start() {
  const bytes = Uint8Array.from(atob($("data").textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const data = await new Response(stream).json();
  const sites = data.graphs.flatMap((g, graph) => g.sites.map((s) => Object.assign(s, { graph, runs: g.runs })));
  summary(data, sites);
  const byPath = new Map();
  const graph = new Graph(data, (g, m) => byPath.get(data.graphs[g].modules[m]) && tree.select(byPath.get(data.graphs[g].modules[m]), false), (g, v, n) => describe(data, g, v, n));
  const choose = (node) => {
    $("name").textContent = node.path || "(model)";
    $("products").replaceChildren(products(data, node));
    $("node").replaceChildren();
    if (node.where) graph.show(...node.where[0]);
    else { $("views").replaceChildren(); graph.svg.replaceChildren(); }
  };
  const tree = new Tree(data, choose);
  tree.each(tree.root, (n) => byPath.set(n.path, n));
  $("bar").append(...bar(tree.root.parts, tree.root.flops));
  $("bar").setAttribute("aria-label", HOWS.map((h) => `${h} ${percent(tree.root.parts[h] / (tree.root.flops || 1))}`).join(", "));
  panels(data, sites, (code) => { $("filter").value = code; tree.show(); });
  const open = () => {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    const box = target && target.closest("details");
    if (box) { box.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", open);
  choose(tree.root);
  open();
  document.documentElement.dataset.ready = performance.now().toFixed(0);
}

start();

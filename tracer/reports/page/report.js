"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const rows = rowsOf(data);
  const modules = modulesOf(rows, data);
  const calls = callsOf(rows);
  const curve = makeCurve(calls);
  const listing = makeListing(modules);
  const detail = makeDetail(modules);

  document.getElementById("explorer").hidden = false;
  for (const link of document.querySelectorAll("[data-module]")) {
    link.addEventListener("click", () => select(link.dataset.module, Number(link.dataset.call), null));
  }
  const [name, call] = data.symptom ?? firstOf(calls) ?? [null];
  if (name !== null) select(name, call, null, true);
  document.documentElement.dataset.ready = "yes";

  /** Shows a module everywhere; quietly while the page loads, when nothing may move. */
  function select(name, call, value, quietly = false) {
    listing.select(name, quietly);
    detail.show(name, call, value, quietly);
    curve.select(name, call);
  }

  // What the comparison has found, as objects.

  function rowsOf({ rows: columns, texts, samples }) {
    const written = ["module", "value", "shape", "dtype", "note"];
    const figures = ["peir", "limit", "floor", "mean", "min", "max", "stddev", "sqnr", "cosine"];
    return columns.module.map((_, i) => {
      const row = { index: i, call: columns.call[i], sample: samples[i] ?? null };
      for (const name of written) row[name] = texts[columns[name][i]];
      for (const name of figures) row[name] = columns[name][i] === null ? null : Number(columns[name][i]);
      row.isOutput = columns.output[i] === 1;
      row.agrees = columns.agrees[i] === 1;
      return row;
    });
  }

  /** Modules by name, parents before children, in execution order otherwise. */
  function modulesOf(rows, { paired, names, unseen, origins }) {
    const found = new Map();
    const culprit = new Set(origins);
    const add = (name) => {
      const known = found.get(name);
      if (known) return known;
      const cut = name.lastIndexOf(".");
      const parent = name === "" ? null : add(cut < 0 ? "" : name.slice(0, cut));
      const module = {
        name, own: names[name] ?? null, parent, children: [], rows: [], worst: null, reason: unseen[name] ?? null,
        culprit: culprit.has(name), depth: parent ? parent.depth + 1 : 0, inside: false, open: true,
        label: name === "" ? "(root)" : name.slice(cut + 1), place: found.size,
      };
      found.set(name, module);
      parent?.children.push(module);
      return module;
    };
    add("");
    for (const row of rows) add(row.module).rows.push(row);
    for (const name of paired) add(name);
    for (const name of Object.keys(unseen)) add(name);
    for (const module of found.values()) {
      for (const row of module.rows) if (row.isOutput && isWorse(row, module.worst)) module.worst = row;
      module.differs = module.rows.some((row) => !row.agrees);
      if (module.differs) for (let up = module.parent; up; up = up.parent) up.inside = true;
    }
    return found;
  }

  function isWorse(row, other) {
    if (other === null) return true;
    if (row.agrees !== other.agrees) return !row.agrees;
    return row.peir > other.peir;
  }

  /** One point for each call: the worst of its outputs. */
  function callsOf(rows) {
    const found = new Map();
    for (const row of rows) {
      if (!row.isOutput) continue;
      const key = `${row.call} ${row.module}`;
      if (isWorse(row, found.get(key) ?? null)) found.set(key, row);
    }
    const own = new Map(data.introduced.map(([m, call, peir]) => [`${call} ${data.texts[m]}`, Number(peir)]));
    return [...found].map(([key, row]) => ({ row, own: own.get(key) ?? null }));
  }

  function firstOf(calls) {
    let worst = null;
    for (const { row } of calls) if (isWorse(row, worst)) worst = row;
    return worst && [worst.module, worst.call];
  }

  // Words and elements.

  function number(value) {
    if (value === null || value === undefined) return "–";
    if (value === 0) return "0";
    if (!Number.isFinite(value)) return Number.isNaN(value) ? "nan" : value > 0 ? "∞" : "-∞";
    return value.toExponential(2).replace(/e([+-])(\d)$/, "e$10$2");
  }

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    return filled(made, attributes, children);
  }

  function shape(tag, attributes = {}, ...children) {
    return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  }

  function filled(made, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  /** A module by the candidate's name, with the reference's where that is another. */
  function bothNames({ name, own }) {
    return own === null ? name || "(root)" : `${own} (reference: ${name})`;
  }

  function named(row) {
    const call = row.call ? `#${row.call}` : "";
    const value = row.value === "output" ? "" : ` ${row.value}`;
    return `${row.module || "(root)"}${call}${value}`;
  }

  // The curve.

  function makeCurve(calls) {
    const height = 250, left = 46, right = 12, top = 18, bottom = 26;
    const plot = document.getElementById("plot");
    const unzoom = document.getElementById("unzoom");
    const finite = calls.flatMap(({ row, own }) => [row.peir, own ?? 0, row.floor ?? 0]).filter((v) => v > 0 && v < Infinity);
    if (calls.length < 2 || !finite.length) return { select() {} };
    const section = document.getElementById("curve");
    section.hidden = false;
    const limits = calls.map(({ row }) => row.limit).filter((v) => v > 0);
    const low = Math.floor(Math.log10(smallest([...finite, ...limits])));
    const high = Math.max(Math.ceil(Math.log10(largest([...finite, ...limits]))), low + 1);
    const hasZero = calls.some(({ row }) => row.peir === 0), hasInfinity = calls.some(({ row }) => row.peir === Infinity);
    const floor = hasZero ? low - 1 : low, ceiling = hasInfinity ? high + 1 : high;
    let from = 0, to = calls.length - 1, chosen = -1, width = 0, svg = null, over = null, drag = null;
    const tip = element("div", { class: "tip", hidden: "" });
    plot.append(tip);
    plot.tabIndex = 0;
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `PEIR of ${calls.length} calls in execution order, on a log scale`);
    legend();

    const x = (i) => left + (to > from ? (i - from) / (to - from) : 0.5) * (width - left - right);
    const y = (peir) => {
      const place = peir === 0 ? floor : peir === Infinity ? ceiling : Math.log10(peir);
      return top + (ceiling - Math.min(Math.max(place, floor), ceiling)) / (ceiling - floor) * (height - top - bottom);
    };
    const at = (event) => {
      const share = (event.clientX - plot.getBoundingClientRect().left - left) / (width - left - right);
      return Math.min(Math.max(Math.round(from + share * (to - from)), from), to);
    };

    function legend() {
      const entry = (key, text, kind = "") => element("li", { class: kind, style: `--key: var(--${key})` }, text);
      const entries = [entry("cool", "agrees")];
      if (calls.some(({ row }) => !row.agrees)) entries.push(entry(data.expected ? "warm" : "hot", "differs"));
      if (data.introduced.length) entries.push(entry("own", "own PEIR"));
      if (calls.some(({ row }) => row.floor !== null)) entries.push(entry("quiet", "noise floor"));
      if (limits.length) entries.push(entry("quiet", "limit", "dash"));
      document.getElementById("legend").append(...entries);
    }

    function draw() {
      width = plot.clientWidth;
      if (!width) return;
      svg?.remove();
      svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, "aria-hidden": "true" });
      drawBands();
      drawGrid();
      const shown = calls.slice(from, to + 1).map((call, i) => ({ ...call, i: from + i }));
      const dot = Math.min(Math.max((width - left - right) / shown.length * 0.8, 3.2), 7);
      const path = (items, place) => items.map((item) => `M${x(item.i).toFixed(1)} ${place(item).toFixed(1)}h0`).join("");
      const line = (items, place) => items.map((item, i) => `${i ? "L" : "M"}${x(item.i).toFixed(1)} ${place(item).toFixed(1)}`).join("");
      svg.append(
        shape("path", { class: "limit", d: line(shown.filter(({ row }) => row.limit > 0), ({ row }) => y(row.limit)) }),
        shape("path", { class: "trace", d: line(shown, ({ row }) => y(row.peir)) }),
        shape("path", { class: "noise", "stroke-width": dot * 0.7, d: path(shown.filter(({ row }) => row.floor !== null), ({ row }) => y(row.floor)) }),
        shape("path", { class: "own", "stroke-width": dot * 0.8, d: path(shown.filter(({ own }) => own !== null), ({ own }) => y(own)) }),
        shape("path", { class: "dots cool", "stroke-width": dot, d: path(shown.filter(({ row }) => row.agrees), ({ row }) => y(row.peir)) }),
        shape("path", { class: "dots hot", "stroke-width": dot, d: path(shown.filter(({ row }) => !row.agrees), ({ row }) => y(row.peir)) }),
      );
      drawFirst();
      over = shape("g");
      svg.append(over);
      plot.prepend(svg);
      mark(chosen);
      unzoom.hidden = from === 0 && to === calls.length - 1;
    }

    /** Every other layer has a ground of its own, with its number. */
    function drawBands() {
      const layer = calls.map(({ row }) => /^(?:.*?\.)?\d+(?=\.|$)/.exec(row.module)?.[0] ?? null);
      const count = new Set(layer.slice(from, to + 1)).size;
      if (count > width / 14) return;
      let shaded = false;
      for (let i = from; i <= to; ) {
        let end = i;
        while (end < to && layer[end + 1] === layer[i]) end += 1;
        if (layer[i] !== null) {
          shaded = !shaded;
          const begin = x(Math.max(i - 0.5, from)), span = x(Math.min(end + 0.5, to)) - begin;
          if (shaded) svg.append(shape("rect", { class: "band", x: begin, y: top, width: Math.max(span, 0), height: height - top - bottom }));
          const label = layer[i].split(".").slice(-2).join(".");
          const text = span > 7 * label.length ? label : span > 20 ? label.split(".").at(-1) : "";
          if (text) svg.append(shape("text", { x: begin + span / 2, y: top - 5, "text-anchor": "middle" }, text));
        }
        i = end + 1;
      }
    }

    function drawGrid() {
      const step = Math.max(1, Math.ceil((high - low) / 6));
      const ticks = [];
      for (let e = low; e <= high; e += step) ticks.push([10 ** e, e === 0 ? "1" : `1e${e}`]);
      if (hasZero) ticks.push([0, "0"]);
      if (hasInfinity) ticks.push([Infinity, "∞"]);
      for (const [value, text] of ticks) {
        svg.append(
          shape("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
          shape("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, text),
        );
      }
      const count = Math.min(to - from, Math.max(Math.floor(width / 130), 2));
      for (let i = 0; i <= count; i += 1) {
        const call = Math.round(from + i / Math.max(count, 1) * (to - from));
        const anchor = i === 0 ? "start" : i === count ? "end" : "middle";
        svg.append(shape("text", { x: x(call), y: height - 8, "text-anchor": anchor }, i ? `${call + 1}` : `call ${call + 1}`));
      }
    }

    function drawFirst() {
      const first = data.symptom && calls.findIndex(({ row }) => row.module === data.symptom[0] && row.call === data.symptom[1]);
      if (first === null || first < from || first > to) return;
      const near = x(first) > width / 2;
      svg.append(
        shape("line", { class: "first", x1: x(first), x2: x(first), y1: top, y2: height - bottom }),
        shape("text", { class: "first-name", x: x(first) + (near ? -6 : 6), y: top + 12, "text-anchor": near ? "end" : "start" }, "differs first"),
      );
    }

    function mark(i) {
      if (!over) return;
      over.replaceChildren();
      if (i < from || i > to) return;
      const { row } = calls[i];
      over.append(
        shape("line", { class: "cursor", x1: x(i), x2: x(i), y1: top, y2: height - bottom }),
        shape("circle", { class: "chosen", cx: x(i), cy: y(row.peir), r: 6 }),
      );
    }

    function tell(i) {
      const { row, own } = calls[i];
      const figures = [`PEIR ${number(row.peir)}`, `limit ${number(row.limit)}`];
      if (data.names[row.module]) figures.unshift(`candidate: ${data.names[row.module]}`);
      if (own !== null) figures.push(`own ${number(own)}`);
      if (row.floor) figures.push(`${short(row.peir / row.floor)} x noise`);
      tip.replaceChildren(element("b", {}, named(row)), figures.join(", "));
      tip.hidden = false;
      tip.style.top = `${y(row.peir) < height / 2 ? y(row.peir) + 14 : Math.max(y(row.peir) - 14 - tip.offsetHeight, 0)}px`;
      tip.style.left = `${Math.min(Math.max(x(i) - tip.offsetWidth / 2, 0), Math.max(width - tip.offsetWidth, 0))}px`;
      mark(i);
    }

    function choose(i) {
      const { row } = calls[i];
      select(row.module, row.call, row.value);
    }

    plot.addEventListener("pointermove", (event) => {
      if (drag !== null && event.pointerType === "mouse") {
        const [a, b] = [drag.x, event.clientX].sort((p, q) => p - q).map((p) => p - plot.getBoundingClientRect().left);
        over.replaceChildren(shape("rect", { class: "selection", x: a, y: top, width: b - a, height: height - top - bottom }));
      } else tell(at(event));
    });
    plot.addEventListener("pointerleave", () => { tip.hidden = true; mark(chosen); });
    plot.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "mouse" || event.button !== 0) return;
      drag = { x: event.clientX, i: at(event) };
      tip.hidden = true;
      plot.setPointerCapture(event.pointerId);
    });
    plot.addEventListener("pointerup", (event) => {
      const begun = drag;
      drag = null;
      if (begun === null || Math.abs(event.clientX - begun.x) < 6 || at(event) === begun.i) return choose(at(event));
      [from, to] = [begun.i, at(event)].sort((a, b) => a - b);
      draw();
    });
    plot.addEventListener("pointercancel", () => { drag = null; });
    unzoom.addEventListener("click", () => { [from, to] = [0, calls.length - 1]; draw(); });
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const next = Math.min(Math.max(chosen + step, from), to);
      choose(next);
      tell(next);
    });
    new ResizeObserver(() => { if (plot.clientWidth !== width) draw(); }).observe(plot);
    draw();

    return {
      select(name, call) {
        chosen = calls.findIndex(({ row }) => row.module === name && row.call === (call ?? row.call));
        mark(chosen);
      },
    };
  }

  /** Infinities differ from infinities by NaN, which no order is made of. */
  function finite(value) { return Math.min(Math.max(Number.isNaN(value) ? Infinity : value, -1e300), 1e300); }
  function smallest(values) { return values.reduce((a, b) => Math.min(a, b)); }
  function largest(values) { return values.reduce((a, b) => Math.max(a, b)); }

  // The list of modules.

  function makeListing(modules) {
    const own = new Map();
    for (const [text, , peir] of data.introduced) own.set(data.texts[text], Math.max(own.get(data.texts[text]) ?? 0, finite(Number(peir))));
    const most = 150;
    const box = document.getElementById("listing"), count = document.getElementById("count");
    const [search, filter, sort] = ["search", "filter", "sort"].map((id) => document.getElementById(id));
    const lines = new Map();
    let selected = null, shown = [];
    if (modules.size > most) for (const module of modules.values()) module.open = module.depth < 2;
    for (const module of modules.values()) if (module.culprit) reveal(module);
    const heads = element("div", { class: "node heads" },
      element("span", {}, "module"), element("span", { class: "figure" }, "PEIR"),
      element("span"), element("span", { class: "figure sqnr" }, "SQNR dB"), element("span"));

    function reveal(module) {
      for (let up = module.parent; up; up = up.parent) up.open = true;
    }

    function isTree() { return sort.value === "tree" && filter.value === "all" && !search.value.trim(); }

    function matcher() {
      const text = search.value.trim().toLowerCase();
      if (!text) return () => true;
      if (!text.includes("*")) return (name) => name.toLowerCase().includes(text);
      const parts = text.split("*").map((part) => part.replace(/[.+?^${}()|[\]\\]/g, "\\$&"));
      const glob = new RegExp(`^${parts.join(".*")}$|(?:^|\\.)${parts.join(".*")}$`);
      return (name) => glob.test(name.toLowerCase());
    }

    const kinds = {
      all: () => true,
      differs: (module) => module.differs,
      agrees: (module) => module.rows.length > 0 && !module.differs,
      unseen: (module) => module.rows.length === 0,
    };
    const by = (figure) => (a, b) => figure(b) - figure(a) || a.place - b.place;
    const orders = {
      tree: (a, b) => a.place - b.place,
      order: (a, b) => (a.rows[0]?.index ?? Infinity) - (b.rows[0]?.index ?? Infinity) || a.place - b.place,
      peir: by((module) => (module.worst ? finite(module.worst.peir) : -1)),
      sqnr: by((module) => -finite(module.worst?.sqnr ?? Infinity)),
      own: by((module) => own.get(module.name) ?? -1),
    };
    document.getElementById("by-own").hidden = !own.size;

    function refresh() {
      const flat = !isTree();
      const matches = matcher();
      if (flat) {
        shown = [...modules.values()].filter((module) => kinds[filter.value](module) && (matches(module.name || "(root)") || (module.own !== null && matches(module.own))));
        shown.sort(orders[sort.value]);
      } else {
        shown = [];
        const walk = (module) => { shown.push(module); if (module.open) module.children.forEach(walk); };
        walk(modules.get(""));
      }
      const content = document.createDocumentFragment();
      content.append(heads, ...shown.map((module) => lineOf(module, flat)));
      if (!shown.length) content.append(element("p", { class: "empty" }, "No module is like that."));
      box.replaceChildren(content);
      const differing = [...modules.values()].filter((module) => module.differs).length;
      count.textContent = `${shown.length} of ${modules.size} shown, ${differing} differ`;
    }

    function lineOf(module, flat) {
      const line = lines.get(module) ?? makeLine(module);
      line.classList.toggle("flat", flat);
      line.style.setProperty("--depth", flat ? 0 : module.depth);
      const [twist, name] = line.firstChild.children;
      twist.hidden = flat;
      const mark = !module.children.length ? "" : module.open ? "▾" : "▸";
      if (twist.textContent !== mark) twist.textContent = mark;
      const label = flat ? module.name || "(root)" : module.label;
      if (name.textContent !== label) name.textContent = label;
      line.querySelector(".status").textContent = status(module, flat);
      if (module.children.length && !flat) line.setAttribute("aria-expanded", module.open);
      else line.removeAttribute("aria-expanded");
      return line;
    }

    function makeLine(module) {
      const { worst } = module;
      const classes = ["node"];
      if (module.differs) classes.push("differs");
      if (module.culprit) classes.push("culprit");
      if (!module.rows.length) classes.push("unseen");
      const line = element("div", { class: classes.join(" "), role: "treeitem", title: module.reason ? `${module.name}: ${module.reason}` : bothNames(module) },
        element("span", { class: "name" }, element("span", { class: "twist" }), element("bdi")),
        element("span", { class: "figure" }, worst ? number(worst.peir) : module.rows.length ? "–" : ""),
        element("span", { class: "heat", hidden: worst ? null : "" }, element("i")),
        element("span", { class: "figure sqnr" }, worst?.sqnr === undefined || worst.sqnr === null ? "" : Number.isFinite(worst.sqnr) ? worst.sqnr.toFixed(1) : number(worst.sqnr)),
        element("span", { class: "status" }));
      if (worst) {
        const share = worst.peir === 0 ? 0 : Math.min(Math.max((Math.log10(worst.peir) + 8) / 8, 0.03), 1);
        line.style.setProperty("--reach", `${100 * share}%`);
        line.style.setProperty("--share", `${100 * share ** 2}%`);
      }
      line.setAttribute("aria-level", module.depth + 1);
      line.addEventListener("click", (event) => {
        if (event.target.classList.contains("twist") && module.children.length) toggle(module);
        else select(module.name, worst?.call ?? null, worst?.value ?? null);
      });
      lines.set(module, line);
      return line;
    }

    /** A closed module shows what is inside it. */
    function status(module, flat) {
      if (module.differs) return data.expected ? "≈" : "✕";
      if (!flat && !module.open && module.inside) return "⋯";
      return module.rows.length ? "✓" : "";
    }

    function toggle(module, open = !module.open) {
      module.open = open;
      refresh();
    }

    function everything(open) {
      for (const module of modules.values()) module.open = open || module.depth < 1;
      sort.value = "tree"; filter.value = "all"; search.value = "";
      refresh();
    }

    function highlight(module, quietly) {
      for (const [one, chosen] of [[selected, false], [module, true]]) {
        lines.get(one)?.classList.toggle("selected", chosen);
        lines.get(one)?.setAttribute("aria-selected", chosen);
      }
      selected = module;
      const line = lines.get(module);
      if (!line?.isConnected) return;
      const above = line.offsetTop - box.offsetTop - 60, below = above + 120 - box.clientHeight;
      if (quietly) box.scrollTop = above - box.clientHeight / 3;
      else if (box.scrollTop > above) box.scrollTop = above;
      else if (box.scrollTop < below) box.scrollTop = below;
    }

    let waiting = 0;
    search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(refresh, 60); });
    filter.addEventListener("change", refresh);
    sort.addEventListener("change", refresh);
    document.getElementById("expand").addEventListener("click", () => everything(true));
    document.getElementById("collapse").addEventListener("click", () => everything(false));
    box.addEventListener("keydown", (event) => {
      const module = selected, place = shown.indexOf(module);
      const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (step) {
        const next = shown[Math.min(Math.max(place + step, 0), shown.length - 1)];
        if (next) select(next.name, next.worst?.call ?? null, next.worst?.value ?? null);
      } else if (module && isTree() && event.key === "ArrowRight" && module.children.length) toggle(module, true);
      else if (module && isTree() && event.key === "ArrowLeft" && module.open && module.children.length) toggle(module, false);
      else return;
      event.preventDefault();
    });
    refresh();

    return {
      select(name, quietly) {
        const module = modules.get(name);
        if (!module) return;
        if (isTree() && !shown.includes(module)) { reveal(module); refresh(); }
        highlight(module, quietly);
      },
    };
  }

  // The values of a module.

  function makeDetail(modules) {
    const box = document.getElementById("detail"), title = document.getElementById("detail-title");
    const body = document.getElementById("detail-body");
    document.getElementById("close").addEventListener("click", () => box.classList.remove("open"));
    const own = new Map(data.introduced.map(([m, call, peir]) => [`${call} ${data.texts[m]}`, Number(peir)]));

    function show(name, call, value, quietly) {
      const module = modules.get(name);
      if (!module) return;
      title.textContent = bothNames(module);
      if (!quietly) box.classList.add("open");
      const ofCall = module.rows.filter((row) => row.call === call);
      const row = ofCall.find((row) => row.value === value) ?? ofCall.find((row) => row.isOutput)
        ?? module.worst ?? module.rows[0];
      body.replaceChildren(tags(module));
      if (!row) {
        body.append(element("p", { class: "quiet" }, module.reason ? `Not compared: ${module.reason}.` : "No value of it was compared; see the modules inside it."));
        return;
      }
      const figures = element("div");
      body.append(table(module, row, (chosen) => figures.replaceChildren(...about(chosen))), figures);
      figures.append(...about(row));
    }

    return { show };

    function tags(module) {
      const list = element("div", { class: "tags" });
      const tag = (text, kind = "") => list.append(element("span", { class: `tag ${kind}` }, text));
      if (module.culprit) tag("an origin of the divergence", "bad");
      if (data.symptom && module.name === data.symptom[0]) tag("differs first", data.expected ? "" : "bad");
      if (module.rows.length) tag(module.differs ? (data.expected ? "differs, as expected" : "differs") : "agrees", module.differs ? "" : "good");
      else if (module.reason) tag("not compared");
      if (module.parent) {
        const up = element("button", { type: "button", class: "link" }, `in ${module.parent.name || "(root)"}`);
        up.addEventListener("click", () => select(module.parent.name, null, null));
        list.append(up);
      }
      return list;
    }

    function table(module, chosen, onChoose) {
      const lines = element("tbody");
      let marked = null;
      const several = module.rows.some((row) => row.call);
      for (const row of module.rows) {
        const line = element("tr", { class: row.agrees ? "" : "off" },
          element("td", { class: "name" }, `${several ? `#${row.call} ` : ""}${row.value}`),
          element("td", {}, number(row.peir)), element("td", {}, row.agrees ? "agrees" : "differs"));
        const mark = () => { marked?.classList.remove("selected"); marked = line; line.classList.add("selected"); };
        line.addEventListener("click", () => { mark(); onChoose(row); });
        if (row === chosen) mark();
        lines.append(line);
      }
      const head = element("tr", {}, element("th", { class: "name" }, "value"), element("th", {}, "PEIR"), element("th"));
      return element("div", { class: "values" }, element("table", {}, element("thead", {}, head), lines));
    }

    function about(row) {
      const list = element("dl", { class: "figures" });
      const add = (name, text, kind = "") => list.append(element("div", { class: kind }, element("dt", {}, name), element("dd", {}, text)));
      add("PEIR", number(row.peir));
      add("limit", number(row.limit));
      if (row.floor !== null) add("x noise", row.floor ? short(row.peir / row.floor) : "–");
      const introduced = row.isOutput ? own.get(`${row.call} ${row.module}`) : undefined;
      if (introduced !== undefined) add("own PEIR", number(introduced));
      add("mean |r − c|", number(row.mean));
      add("max |r − c|", number(row.max));
      add("min |r − c|", number(row.min));
      add("stddev", number(row.stddev));
      add("SQNR", row.sqnr === null ? "–" : Number.isFinite(row.sqnr) ? `${row.sqnr.toFixed(1)} dB` : number(row.sqnr));
      add("cosine", row.cosine === null ? "–" : row.cosine.toFixed(6));
      add("shape", row.shape || "scalar");
      add("dtype", row.dtype || "–");
      if (row.note) add("note", row.note, "note");
      return [list, row.sample ? drawings(row) : element("p", { class: "quiet" }, whyNot(row))];
    }

    function whyNot(row) {
      if (!row.isOutput) return "Of arguments no values are kept.";
      if (!Object.keys(data.samples).length) return "No values were kept: ask for them with compare(..., samples=256).";
      return "There are no pairs of finite real values to draw.";
    }

    function drawings(row) {
      const box = element("div", { class: `drawings ${row.agrees ? "" : "differs"}` });
      box.append(
        element("div", {}, element("h3", {}, "candidate over reference"), scatter(row.sample)),
        element("div", {}, element("h3", {}, "reference − candidate"), histogram(row.sample)));
      return box;
    }
  }

  function levels(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Array.from({ length: bytes.length / 2 }, (_, i) => view.getUint16(2 * i, true) / 65535);
  }

  function scatter(sample) {
    const size = 230, left = 8, edge = 208;
    const [xs, ys] = [levels(sample.reference), levels(sample.candidate)];
    const place = (share) => left + share * (edge - left);
    const d = xs.map((x, i) => `M${place(x).toFixed(1)} ${(edge + left - place(ys[i])).toFixed(1)}h0`).join("");
    const svg = shape("svg", { viewBox: `0 0 ${edge + 8} ${size}`, role: "img", "aria-label": `${xs.length} pairs of values` });
    svg.append(
      shape("rect", { class: "frame", x: left, y: left, width: edge - left, height: edge - left }),
      shape("line", { class: "diagonal", x1: left, y1: edge, x2: edge, y2: left }),
      shape("path", { class: "pairs", d }),
      shape("text", { x: left, y: size - 6 }, short(Number(sample.low))),
      shape("text", { x: (left + edge) / 2, y: size - 6, "text-anchor": "middle" }, `${xs.length} pairs`),
      shape("text", { x: edge, y: size - 6, "text-anchor": "end" }, short(Number(sample.high))));
    return svg;
  }

  function histogram(sample) {
    const size = 230, left = 8, edge = 208, step = (edge - left) / sample.counts.length;
    const most = Math.log1p(largest(sample.counts));
    const total = sample.counts.reduce((a, b) => a + b, 0);
    const svg = shape("svg", { viewBox: `0 0 ${edge + 8} ${size}`, role: "img", "aria-label": `histogram of ${total} differences` });
    svg.append(shape("rect", { class: "frame", x: left, y: left, width: edge - left, height: edge - left }));
    sample.counts.forEach((count, i) => {
      const height = most ? Math.log1p(count) / most * (edge - left - 4) : 0;
      const bar = shape("rect", { class: "bar", x: left + i * step + 0.5, y: edge - height, width: step - 1, height });
      bar.append(shape("title", {}, `${count.toLocaleString("en")} elements`));
      svg.append(bar);
    });
    const reach = Number(sample.reach);
    svg.append(
      shape("text", { x: left, y: size - 6 }, short(-reach)),
      shape("text", { x: (left + edge) / 2, y: size - 6, "text-anchor": "middle" }, `${total.toLocaleString("en")}, log counts`),
      shape("text", { x: edge, y: size - 6, "text-anchor": "end" }, short(reach)));
    return svg;
  }

  function short(value) {
    return value === 0 ? "0" : Math.abs(value) >= 1e-3 && Math.abs(value) < 1e4 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
  }
})();

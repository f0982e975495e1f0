"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const DASH = "\u2013";
  const PAGE = 20;
  let table = data.tables[0];
  let sorting = { key: "rank", down: false };
  let costSorting = { key: "mean", down: true };
  let limit = PAGE;

  // Every text goes in as text: a name or a document never becomes mark-up.
  function make(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") made.className = value;
      else if (value === true) made.setAttribute(name, "");
      else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }
  function draw(tag, attributes = {}, text = null) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== null) made.textContent = text;
    return made;
  }
  function choose(select, options, chosen) {
    select.replaceChildren(...options.map(([value, label]) => make("option", { value }, label)));
    if (chosen !== undefined) select.value = chosen;
  }
  const percent = (score, digits = 2) => (score === null || score === undefined ? DASH : (100 * score).toFixed(digits));
  const whole = (mean) => mean !== null && mean.count === mean.of;
  const number = (value, digits = 0) => (value === null || value === undefined ? DASH
    : value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits }));
  const empty = (text) => make("p", { class: "empty" }, text);
  const display = (row) => (row.table ? `${row.label} \u00b7 ${row.table}` : row.label);

  function shownRows() {
    const words = at("filter").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    return table.rows.filter((row) => {
      const text = `${display(row)} ${row.revision}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
  }

  // Missing values stay last, whichever way the column is sorted.
  function sorted(rows, value, down) {
    const lacks = (one) => one === null || one === undefined;
    return [...rows].sort((one, two) => {
      const [left, right] = [value(one), value(two)];
      if (lacks(left) || lacks(right)) return lacks(left) - lacks(right);
      const order = typeof left === "string" ? left.localeCompare(right) : left - right;
      return down ? -order : order;
    });
  }

  function sortable(columns, state, again) {
    return make("tr", {}, ...columns.map((column) => {
      const button = make("button", { type: "button", title: column.title || null, "data-key": column.key }, column.label);
      button.addEventListener("click", () => {
        const same = state.key === column.key;
        state.down = same ? !state.down : !column.up;
        state.key = column.key;
        again();
        const next = document.querySelector(`#${column.table} button[data-key="${CSS.escape(column.key)}"]`);
        if (next) next.focus();
      });
      const sort = state.key === column.key ? (state.down ? "descending" : "ascending") : "none";
      return make("th", { scope: "col", class: column.up && column.key === "label" ? "name" : "", "aria-sort": sort }, button);
    }));
  }

  function scoreColumns() {
    return [
      { key: "rank", label: "#", up: true, title: "rank by whole mean", value: (row) => row.rank },
      { key: "label", label: "model", up: true, value: (row) => display(row).toLowerCase() },
      { key: "mean", label: "mean", title: "macro mean of the subsets", value: (row) => (whole(row.mean) ? row.mean.value : null) },
      ...table.groups.map((group) => ({
        key: `group ${group}`, label: group === "StackExchange" ? "StackEx." : group, title: `macro mean of ${group}`, value: (row) => (row.groups[group] ? row.groups[group].value : null),
      })),
      ...table.columns.map((column, place) => ({
        key: `subset ${column}`, label: table.short[place], title: column, value: (row) => row.scores[place],
      })),
    ].map((column) => ({ ...column, table: "scores-table" }));
  }

  function meanCell(mean, kind, mark) {
    if (!mean) return make("td", { class: "none" }, DASH);
    const full = whole(mean);
    const cell = make("td", { class: full ? kind : "part" }, percent(mean.value) + (full ? "" : `* ${mean.count}/${mean.of}`));
    if (!full) cell.title = `mean over ${mean.count} of ${mean.of} subsets: not comparable, not ranked`;
    if (mark) cell.append(make("sup", { title: "models without a common letter differ significantly" }, mark));
    return cell;
  }

  function nameCell(row) {
    const name = make("th", { scope: "row", class: "name", title: `${row.model}, revision ${row.revision}` });
    // A long name may break behind its organisation.
    row.label.split("/").forEach((part, place) => name.append(...(place ? ["/", make("wbr"), part] : [part])));
    if (row.table) name.append(make("small", {}, row.table));
    return name;
  }

  // A number leads to what it was made by; nothing is asked before somebody follows it.
  function linked(score, place) {
    const href = table.links[place];
    if (!href) return percent(score);
    return make("a", { class: "protocol", href, rel: "noreferrer", target: "_blank" }, percent(score));
  }

  function drawScores() {
    const columns = scoreColumns();
    const rows = shownRows();
    const column = columns.find((one) => one.key === sorting.key) || columns[0];
    const ordered = sorted(rows, column.value, sorting.down);
    const best = table.columns.map((_, place) => Math.max(...table.rows.map((row) => row.scores[place] ?? -1)));
    const body = ordered.map((row) => make("tr", {},
      make("td", {}, row.rank === null ? DASH : String(row.rank)),
      nameCell(row),
      meanCell(row.mean, "mean", row.mark),
      ...table.groups.map((group) => meanCell(row.groups[group] || null, "", "")),
      ...row.scores.map((score, place) => (score === null
        ? make("td", { class: "none", title: "no result" }, DASH)
        : make("td", { class: score === best[place] ? "best" : "", title: table.columns[place] }, linked(score, place)))),
    ));
    at("scores-table").replaceChildren(make("table", {},
      make("caption", {}, `${table.name}: scores in per cent`),
      make("thead", {}, sortable(columns, sorting, drawScores)), make("tbody", {}, ...body)));
    at("shown").textContent = rows.length === table.rows.length ? `${rows.length} models` : `${rows.length} of ${table.rows.length} models`;
  }

  function drawHeat() {
    const rows = shownRows();
    const values = (place) => rows.map((row) => row.scores[place]).filter((score) => score !== null);
    const all = table.columns.flatMap((_, place) => values(place));
    const range = (held) => [Math.min(...held), Math.max(...held)];
    const within = at("heat-scale").value === "column";
    const ranges = table.columns.map((_, place) => range(within ? values(place) : all));
    const body = rows.map((row) => make("tr", {}, nameCell(row), ...row.scores.map((score, place) => {
      if (score === null) return make("td", { class: "none", title: `${table.columns[place]}: no result` }, DASH);
      const [low, high] = ranges[place];
      const share = high > low ? (score - low) / (high - low) : 0.5;
      const cell = make("td", { class: share > 0.8 ? "value deep" : "value", title: `${row.label}, ${table.columns[place]}: ${percent(score)}` }, percent(score, 1));
      cell.style.setProperty("--p", String(Math.round(4 + 86 * share)));
      return cell;
    })));
    const head = make("tr", {}, make("th", { scope: "col", class: "name" }, "model"),
      ...table.short.map((short, place) => make("th", { scope: "col", title: table.columns[place] }, short)));
    at("heat-table").replaceChildren(make("table", { class: "heat" },
      make("caption", {}, `${table.name}: heat map of models by subsets`), make("thead", {}, head), make("tbody", {}, ...body)));
  }

  function pair(label, small, score, scale, noise) {
    const place = (value) => `${Math.min(100, Math.max(0, (100 * value) / scale))}%`;
    const track = make("div", { class: "track", "aria-hidden": "true" });
    const ours = make("span", { class: "ours" });
    ours.style.width = place(score.ours);
    const line = make("span", { class: "line" });
    line.style.left = place(score.published);
    track.append(ours);
    if (score.within_noise !== null) {
      const band = make("span", { class: "noise" });
      band.style.left = place(score.published - noise);
      band.style.width = place(2 * noise);
      track.append(band);
    }
    track.append(line);
    const sign = score.difference >= 0 ? "+" : "\u2212";
    const words = make("span", { class: "words" },
      `${score.ours.toFixed(2)}, published ${score.published.toFixed(2)} (${sign}${Math.abs(score.difference).toFixed(2)}) `);
    if (score.within_noise !== null) {
      words.append(make("span", { class: score.within_noise ? "yes" : "no" }, score.within_noise ? "within noise" : "outside noise"));
    }
    return make("div", { class: "pair" }, make("b", {}, label, small ? make("small", {}, small) : null), track, words);
  }

  function drawPublished() {
    const kept = new Set(shownRows());
    const held = table.published.filter((one) => kept.has(table.rows[one.row]));
    const chosen = at("published-of").value;
    at("published-note").replaceChildren();
    if (!held.length) {
      at("published-bars").replaceChildren(empty(table.published.length ? "No shown model has published scores."
        : "Nobody published scores of these models for this table."));
      return;
    }
    const one = chosen === "mean" ? null : table.published[Number(chosen)];
    const bars = one === null
      ? held.filter((source) => source.scores.mean).map((source) => [source.label, source.source, source.scores.mean, data.noise.mean])
      : Object.entries(one.scores).map(([subset, score]) => [subset === "mean" ? "macro mean" : subset, "", score, subset === "mean" ? data.noise.mean : data.noise.subset]);
    const scale = Math.min(100, 1.12 * Math.max(1, ...bars.map(([, , score]) => Math.max(score.ours, score.published))));
    at("published-note").append(
      make("span", { class: "key ours" }), "ours  ", make("span", { class: "key theirs" }), "published  ",
      make("span", { class: "key band" }), `reproduction noise (\u00b1${data.noise.subset} points a subset, \u00b1${data.noise.mean} the mean, nDCG@10)`,
      one ? `. ${one.source}${one.note ? `; ${one.note}` : ""}.` : "");
    at("published-bars").replaceChildren(...(bars.length ? bars.map(([label, small, score, noise]) => pair(label, small, score, scale, noise))
      : [empty("No model has every subset: choose one above to see the subsets it has.")]));
  }

  const AXES = [
    ["seconds", "seconds, all subsets", (cost) => cost.seconds],
    ["tokens", "tokens, all subsets", (cost) => cost.tokens],
    ["dimensions", "vector size", (cost) => cost.dimensions],
  ];

  function drawCost() {
    const rows = shownRows();
    const [, name, value] = AXES.find(([key]) => key === at("cost-axis").value) || AXES[0];
    const points = rows.filter((row) => value(row.cost) > 0 && whole(row.mean)).map((row) => ({ row, x: value(row.cost), y: 100 * row.mean.value }));
    at("cost-plot").replaceChildren(points.length ? scatter(points, name) : empty(`No shown model with a whole mean has its ${name} recorded.`));
    drawCostTable(rows);
  }

  function scatter(points, name) {
    // Drawn at its own size, so that its words are as large on a phone as on a desk.
    const width = Math.max(300, Math.min(1000, at("cost-plot").clientWidth || 760));
    const [height, left, right, top, bottom] = [340, 52, 24, 18, 44];
    const logs = points.map((point) => Math.log10(point.x));
    const pad = (low, high, least) => { const more = Math.max(least, 0.12 * (high - low)); return [low - more, high + more]; };
    const [x0, x1] = pad(Math.min(...logs), Math.max(...logs), 0.15);
    const [low, y1] = pad(Math.min(...points.map((p) => p.y)), Math.max(...points.map((p) => p.y)), 1);
    const y0 = Math.max(0, low);
    const px = (x) => left + ((Math.log10(x) - x0) / (x1 - x0)) * (width - left - right);
    const py = (y) => height - bottom - ((y - y0) / (y1 - y0)) * (height - top - bottom);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": `Mean score against ${name}` });
    for (let power = Math.floor(x0); power <= Math.ceil(x1); power += 1) {
      for (const step of x1 - x0 > 2 ? [1] : x1 - x0 > 0.7 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 7]) {
        const x = step * 10 ** power;
        if (Math.log10(x) < x0 || Math.log10(x) > x1) continue;
        svg.append(draw("line", { x1: px(x), x2: px(x), y1: top, y2: height - bottom }),
          draw("text", { x: px(x), y: height - bottom + 17, "text-anchor": "middle" }, x < 1 ? String(Number(x.toPrecision(1))) : Intl.NumberFormat("en", { notation: "compact" }).format(x)));
      }
    }
    const gap = [0.5, 1, 2, 5, 10, 20].find((step) => (y1 - y0) / step <= 7) || 20;
    for (let y = Math.ceil(y0 / gap) * gap; y <= y1; y += gap) {
      svg.append(draw("line", { x1: left, x2: width - right, y1: py(y), y2: py(y) }),
        draw("text", { x: left - 8, y: py(y) + 4, "text-anchor": "end" }, String(y)));
    }
    svg.append(draw("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, `${name} (logarithmic)`),
      draw("text", { x: 14, y: (top + height - bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${(top + height - bottom) / 2})` }, "mean, %"));
    // The front: nobody is both cheaper and better.
    const ordered = [...points].sort((one, two) => one.x - two.x || two.y - one.y);
    let high = -1;
    const front = ordered.filter((point) => { const is = point.y > high; if (is) high = point.y; return is; });
    if (front.length > 1) svg.append(draw("path", { d: front.map((p, i) => `${i ? "L" : "M"}${px(p.x).toFixed(1)} ${py(p.y).toFixed(1)}`).join("") }));
    const dots = points.map((point) => [px(point.x) - 7, py(point.y) - 7, 14, 14]);
    const labels = [];
    for (const point of ordered) {
      const best = front.includes(point);
      const words = `${display(point.row)}: ${point.y.toFixed(2)} %, ${number(point.x, point.x < 100 ? 1 : 0)} ${name.split(",")[0]}`;
      const circle = draw("circle", { cx: px(point.x), cy: py(point.y), r: 6, class: best ? "front" : "", tabindex: 0, role: "img", "aria-label": words });
      circle.append(draw("title", {}, words));
      svg.append(circle);
      if (best || points.length <= 12) labels.push([point, display(point.row).split("/").pop()]);
    }
    // Labels of the best first; one that fits nowhere stays in the dot's own title.
    const meets = (one, two) => one[0] < two[0] + two[2] && two[0] < one[0] + one[2] && one[1] < two[1] + two[3] && two[1] < one[1] + one[3];
    for (const [point, label] of labels.sort((one, two) => two[0].y - one[0].y)) {
      const size = 6.5 * label.length;
      const places = [[10, 4, "start"], [-10, 4, "end"], [0, -12, "middle"], [0, 20, "middle"]];
      for (const [dx, dy, anchor] of places) {
        const x = px(point.x) + dx;
        const box = [anchor === "start" ? x : anchor === "end" ? x - size : x - size / 2, py(point.y) + dy - 11, size, 14];
        if (box[0] < left || box[0] + size > width || dots.some((dot) => meets(dot, box))) continue;
        dots.push(box);
        svg.append(draw("text", { class: "label", x, y: py(point.y) + dy, "text-anchor": anchor }, label));
        break;
      }
    }
    return svg;
  }

  function drawCostTable(rows) {
    const speed = (row) => (row.cost.tokens && row.cost.seconds ? row.cost.tokens / row.cost.seconds : null);
    const columns = [
      { key: "label", label: "model", up: true, value: (row) => display(row).toLowerCase() },
      { key: "mean", label: "mean", value: (row) => (whole(row.mean) ? row.mean.value : null) },
      { key: "seconds", label: "seconds", value: (row) => row.cost.seconds },
      { key: "tokens", label: "tokens", value: (row) => row.cost.tokens },
      { key: "speed", label: "tokens/s", value: speed },
      { key: "truncated", label: "cut", title: "inputs cut at the length", value: (row) => row.cost.truncated },
      { key: "dimensions", label: "vector size", value: (row) => row.cost.dimensions },
      { key: "device", label: "device", up: true, value: (row) => row.cost.device },
    ].map((column) => ({ ...column, table: "cost-table" }));
    const column = columns.find((one) => one.key === costSorting.key);
    const body = sorted(rows, column.value, costSorting.down).map((row) => make("tr", {},
      nameCell(row), meanCell(row.mean, "mean", ""), make("td", {}, number(row.cost.seconds, 1)), make("td", {}, number(row.cost.tokens)),
      make("td", {}, number(speed(row))), make("td", {}, number(row.cost.truncated)), make("td", {}, number(row.cost.dimensions)),
      make("td", {}, row.cost.device || DASH)));
    at("cost-table").replaceChildren(make("table", {}, make("caption", {}, `${table.name}: quality and cost`),
      make("thead", {}, sortable(columns, costSorting, drawCost)), make("tbody", {}, ...body)));
  }

  function differences() {
    const [one, two] = [Number(at("first").value), Number(at("second").value)];
    const wanted = at("subset").value;
    const words = at("search").value.trim().toLowerCase();
    const found = [];
    for (const subset of table.explorer ? table.explorer.subsets : []) {
      if (wanted && subset.column !== wanted) continue;
      const [left, right] = [subset.scores[one], subset.scores[two]];
      if (!left || !right) continue;
      subset.queries.forEach((query, place) => {
        if (left[place] === null || right[place] === null) return;
        const kept = subset.kept[query];
        if (words && !`${query} ${(kept && kept.text) || ""}`.toLowerCase().includes(words)) return;
        found.push({ subset, query, kept, left: left[place], right: right[place] });
      });
    }
    return found.sort((a, b) => Math.abs(b.left - b.right) - Math.abs(a.left - a.right));
  }

  function side(title, documents, gold, subset) {
    const list = make("ol", {}, ...documents.map(([id, score]) => {
      const item = make("li", {}, make("span", { class: "id" }, id));
      if (score !== null) item.append(make("span", { class: "num" }, ` ${score}`));
      if (gold !== null && gold.includes(id)) item.append(" ", make("span", { class: "gold" }, "relevant"));
      const text = table.explorer.documents[`${subset.column}\t${id}`];
      if (text) item.append(make("span", { class: "body" }, text));
      return item;
    }));
    return make("div", {}, make("h3", {}, title), list);
  }

  function opened(one) {
    const inside = make("div", { class: "open" });
    const command = make("code", {}, `reasonembed inspect RESULTS --task ${one.subset.task} --query '${one.query.replaceAll("'", "'\\''")}'`);
    if (!one.kept) {
      inside.append(make("p", { class: "muted" }, "Texts and documents of this query are not in the page: ", command));
      return inside;
    }
    inside.append(one.kept.text ? make("p", { class: "text" }, one.kept.text)
      : make("p", { class: "muted" }, one.subset.missing || "The text of this query is not at hand."));
    const sides = [["first", "left"], ["second", "right"]].map(([id, key]) => {
      const place = at(id).value;
      const title = `${display(table.rows[Number(place)])}: ${(one[key] / 10).toFixed(1)}`;
      const hits = one.kept.hits[place];
      return hits ? side(title, hits, one.kept.gold, one.subset)
        : make("div", {}, make("h3", {}, title), make("p", { class: "muted" }, "Its documents are not in the page: ", command.cloneNode(true)));
    });
    inside.append(make("div", { class: "sides" }, ...sides, side("Relevant", one.kept.gold.map((id) => [id, null]), null, one.subset)));
    return inside;
  }

  function drawQueries() {
    const note = at("queries-note");
    if (!table.explorer) {
      note.textContent = "";
      at("more").hidden = true;
      at("query-list").replaceChildren(make("li", {}, empty("No model of this table has scores by query; reasonembed run keeps them.")));
      return;
    }
    const found = differences();
    note.textContent = found.length ? `${number(found.length)} queries that both answered, the largest difference first.`
      : "No query that both models answered.";
    at("query-list").replaceChildren(...found.slice(0, limit).map((one) => {
      const gap = (one.left - one.right) / 10;
      const summary = make("summary", {},
        make("span", { class: "where" }, `${one.subset.column} \u00b7 ${one.query}`),
        make("span", { class: "delta" }, `${(one.left / 10).toFixed(1)} against ${(one.right / 10).toFixed(1)} (${gap >= 0 ? "+" : "\u2212"}${Math.abs(gap).toFixed(1)})`),
        make("span", { class: "start" }, (one.kept && one.kept.text) || ""));
      const details = make("details", {}, summary);
      details.addEventListener("toggle", () => { if (details.open && details.children.length === 1) details.append(opened(one)); });
      return make("li", {}, details);
    }));
    at("more").hidden = found.length <= limit;
  }

  function drawAll() { drawScores(); drawHeat(); drawPublished(); drawCost(); }

  function fill() {
    table = data.tables[Number(at("table").value)];
    Object.assign(sorting, { key: "rank", down: false });
    limit = PAGE;
    at("about").textContent = `${table.about[0].toUpperCase()}${table.about.slice(1)}. ${table.metric_name} in %.`;
    at("scores-note").textContent = table.marks_note || "";
    at("notes").replaceChildren(...table.notes.map((note) => make("li", {}, note)));
    choose(at("published-of"), [["mean", "means of all models"],
      ...table.published.map((one, place) => [String(place), `${one.label}, ${one.source}`])], "mean");
    choose(at("cost-axis"), AXES.map(([key, name]) => [key, name]),
      (AXES.find(([, , value]) => table.rows.some((row) => value(row.cost) > 0)) || AXES[0])[0]);
    const scored = table.rows.map((row, place) => [String(place), display(row)])
      .filter(([place]) => table.explorer && table.explorer.subsets.some((subset) => subset.scores[Number(place)]));
    choose(at("first"), scored, scored.length ? scored[0][0] : undefined);
    choose(at("second"), scored, scored.length > 1 ? scored[1][0] : undefined);
    choose(at("subset"), [["", "all"], ...(table.explorer ? table.explorer.subsets : []).map((subset) => [subset.column, subset.column])]);
    drawAll();
    drawQueries();
  }

  const again = () => { limit = PAGE; drawQueries(); };
  choose(at("table"), data.tables.map((one, place) => [String(place), one.name]));
  const models = new Set(data.tables.flatMap((one) => one.rows.map((row) => row.label)));
  at("summary").textContent = `${models.size} ${models.size === 1 ? "model" : "models"}, ${data.tables.length} ${data.tables.length === 1 ? "table" : "tables"}. Results of different tables are not comparable.`;
  at("table").addEventListener("change", fill);
  at("filter").addEventListener("input", drawAll);
  at("heat-scale").addEventListener("change", drawHeat);
  at("published-of").addEventListener("change", drawPublished);
  at("cost-axis").addEventListener("change", drawCost);
  for (const id of ["first", "second", "subset"]) at(id).addEventListener("change", again);
  at("search").addEventListener("input", again);
  at("more").addEventListener("click", () => { limit += PAGE; drawQueries(); });
  at("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  addEventListener("resize", () => {
    const svg = at("cost-plot").querySelector("svg");
    if (svg && Math.abs(svg.width.baseVal.value - Math.min(1000, at("cost-plot").clientWidth)) > 8) drawCost();
  });
  at("problems").hidden = !data.problems.length;
  at("problem-list").replaceChildren(...data.problems.map((line) => make("li", {}, line)));
  if (data.tables.length) fill();
})();

"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const settings = JSON.parse(byId("settings").textContent);
  const records = JSON.parse(byId("records").textContent);
  const [PATH, PREDICTIONS, ERROR, THUMBNAIL, LINK, COLUMNS] = [0, 1, 2, 3, 4, 5];

  // What made the scores: "softmax" of all labels, "sigmoid" of each for itself, or nothing.
  const several = settings.scores === "sigmoid";
  const raw = settings.scores === "raw";

  // Below this the label is a guess, whatever it says; of several at once, it is not there.
  const DOUBTFUL_SCORE = 0.5;
  const DOUBTFUL_LEAD = 0.1;
  const GAP = 12;
  const CAPTION = 58;
  const LABELS_AT_FIRST = 60;
  const NO_LABEL = "";
  const ERROR_LABEL = "\0error";

  const number = new Intl.NumberFormat("en");
  const shownScore = (score) => raw ? String(Number(score.toPrecision(5))) : `${(100 * score).toFixed(1)}%`;
  // As the fields of the filter have them, and half of the last digit that is shown.
  const inField = (score) => raw ? score : 100 * score;
  const DIGIT = raw ? 0 : 0.05;

  // Characters that steer instead of being seen: control characters, lone surrogates, and those
  // that turn the direction of the text around them.
  const STEERING = /[\p{Cc}\p{Cs}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/gu;
  const escaped = (character) => {
    const known = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };
    return known[character] ?? `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  };
  const visible = (text) => text.replace(STEERING, escaped);
  // For where a text is cut anyway: a path may be longer than any screen.
  const short = (text) => visible(text.length > 300 ? `${text.slice(0, 300)}…` : text);

  // Composed: some file systems take their names apart.
  const folded = (text) => text.normalize("NFC").toLowerCase();

  const fileName = (path) => path.slice(Math.max(path.lastIndexOf("/"), path.lastIndexOf("\\")) + 1) || path;

  // What filters and sorting ask of each record, once.
  const count = records.length;
  const labels = new Array(count);
  // What its labels are, each with its score: the best one, or of several at once all that reach
  // what counts as one.
  const found = new Array(count);
  const scores = new Float64Array(count);
  const doubtful = new Uint8Array(count);
  const texts = new Array(count);
  let errors = 0;
  let doubts = 0;
  records.forEach((record, index) => {
    const [best, second] = record[PREDICTIONS];
    labels[index] = record[ERROR] !== null ? ERROR_LABEL : best ? best[0] : NO_LABEL;
    scores[index] = best ? best[1] : NaN;
    found[index] = several ? record[PREDICTIONS].filter(([, score]) => score >= settings.least) : [];
    const words = several ? found[index].map(([label]) => label).join("\n") : best ? best[0] : "";
    if (several && record[ERROR] === null && !found[index].length) labels[index] = NO_LABEL;
    if (!found[index].length) found[index].push([labels[index], scores[index]]);
    errors += record[ERROR] !== null;
    doubtful[index] = record[ERROR] === null && isDoubtful(record[PREDICTIONS], best, second);
    doubts += doubtful[index];
    texts[index] = folded(`${words}\n${record[PATH]}`);
  });

  function isDoubtful(predictions, best, second) {
    if (raw) return false;
    if (several) return predictions.some(([, score]) => Math.abs(score - DOUBTFUL_SCORE) < DOUBTFUL_LEAD);
    return !best || best[1] < DOUBTFUL_SCORE || (second && best[1] - second[1] < DOUBTFUL_LEAD);
  }

  const shownLabel = (label) => label === ERROR_LABEL ? "(error)" : label === NO_LABEL ? "(no label)" : visible(label);

  // Corrections: the right label of an image by its index, or "" for none of these. They are kept
  // by path in this browser's own storage, and leave it by "Save" alone.

  const correctable = settings.scores === "softmax";
  const corrections = new Map();
  const selected = new Set();
  const undone = [];
  let kept = true;
  const shownCorrection = (label) => label === "" ? "(none of these)" : visible(label);

  if (correctable) {
    const byPath = new Map();
    records.forEach((record, index) => byPath.set(record[PATH], index));
    try {
      const before = JSON.parse(localStorage.getItem(settings.key) ?? "[]");
      for (const [path, label] of before) {
        if (byPath.has(path) && typeof label === "string") corrections.set(byPath.get(path), label);
      }
    } catch {
      kept = false;
    }
  }

  function keep() {
    const entries = [...corrections].map(([index, label]) => [records[index][PATH], label]);
    try {
      if (entries.length) localStorage.setItem(settings.key, JSON.stringify(entries));
      else localStorage.removeItem(settings.key);
      kept = true;
    } catch {
      // No room, or no such thing for a file in this browser.
      kept = false;
    }
  }

  // State, and the address that keeps it.

  const DEFAULTS = { q: "", view: "all", min: raw ? "" : 0, max: raw ? "" : 100, sort: "input" };
  const state = { ...DEFAULTS, labels: new Set(), open: null };

  const limited = (text, otherwise) => {
    const value = text === null || text === "" ? NaN : Number(text);
    if (!Number.isFinite(value)) return otherwise;
    return raw ? value : Math.min(100, Math.max(0, value));
  };

  function readAddress() {
    const parameters = new URLSearchParams(location.hash.slice(1));
    const one = (name, allowed) => {
      const value = parameters.get(name);
      return allowed.includes(value) ? value : DEFAULTS[name];
    };
    state.q = parameters.get("q") ?? "";
    state.view = one("view", [...document.querySelectorAll("input[name=view]")].map((each) => each.value));
    state.sort = one("sort", [...byId("sort").options].map((each) => each.value));
    state.min = limited(parameters.get("min"), DEFAULTS.min);
    state.max = limited(parameters.get("max"), DEFAULTS.max);
    state.labels = new Set(parameters.getAll("label"));
    if (parameters.has("error")) state.labels.add(ERROR_LABEL);
    const open = /^\d+$/.test(parameters.get("open") ?? "") ? Number(parameters.get("open")) - 1 : -1;
    state.open = open >= 0 && open < count ? open : null;
  }

  function writeAddress() {
    const parameters = new URLSearchParams();
    for (const name of Object.keys(DEFAULTS)) {
      if (state[name] !== DEFAULTS[name]) parameters.set(name, state[name]);
    }
    for (const label of state.labels) {
      if (label === ERROR_LABEL) parameters.set("error", "1");
      else parameters.append("label", label);
    }
    if (state.open !== null) parameters.set("open", state.open + 1);
    history.replaceState(null, "", `#${parameters}`);
  }

  function fillControls() {
    byId("search").value = state.q;
    byId("min").value = state.min;
    byId("max").value = state.max;
    byId("sort").value = state.sort;
    document.querySelector(`input[name=view][value=${state.view}]`).checked = true;
  }

  // Sorting: each order is worked out once.

  const compare = new Intl.Collator(undefined, { numeric: true }).compare;
  const orders = new Map();
  // What has no score comes last both ways.
  const scoreless = (a, b) => Number.isNaN(scores[a]) - Number.isNaN(scores[b]);
  // How far an image is from having another label.
  const margin = (index) => {
    const [best, second] = records[index][PREDICTIONS];
    if (several) return Math.min(...records[index][PREDICTIONS].map(([, score]) => Math.abs(score - DOUBTFUL_SCORE)));
    return best[1] - (second ? second[1] : 0);
  };
  const highest = (a, b) => scoreless(a, b) || scores[b] - scores[a];

  function order() {
    if (!orders.has(state.sort)) {
      const indexes = Array.from(records, (_, index) => index);
      const ways = {
        input: () => 0,
        path: (a, b) => compare(records[a][PATH], records[b][PATH]),
        label: (a, b) => compare(shownLabel(labels[a]), shownLabel(labels[b])) || highest(a, b),
        score: highest,
        "-score": (a, b) => scoreless(a, b) || scores[a] - scores[b],
        uncertain: (a, b) => scoreless(a, b) || margin(a) - margin(b),
      };
      orders.set(state.sort, indexes.sort((a, b) => ways[state.sort](a, b) || a - b));
    }
    return orders.get(state.sort);
  }

  // Filtering.

  let selection = [];
  const positions = new Map();
  const labelCounts = new Map();

  function filter() {
    const words = folded(state.q).split(/\s+/).filter(Boolean);
    const least = state.min === "" ? -Infinity : state.min - DIGIT;
    const most = state.max === "" ? Infinity : state.max + DIGIT;
    const whole = raw ? least === -Infinity && most === Infinity : state.min <= 0 && state.max >= 100;
    const fits = ([, score]) => whole || (inField(score) >= least && inField(score) <= most);
    selection = [];
    positions.clear();
    labelCounts.clear();
    for (const index of order()) {
      if (state.view === "errors" && records[index][ERROR] === null) continue;
      if (state.view === "doubtful" && !doubtful[index]) continue;
      if (state.view === "corrected" && !corrections.has(index)) continue;
      if (!words.every((word) => texts[index].includes(word))) continue;
      const fitting = found[index].filter(fits);
      if (!fitting.length) continue;
      for (const [label] of fitting) labelCounts.set(label, (labelCounts.get(label) ?? 0) + 1);
      if (state.labels.size && !fitting.some(([label]) => state.labels.has(label))) continue;
      positions.set(index, selection.length);
      selection.push(index);
    }
  }

  // The label filter, which is a bar chart.

  const totals = new Map();
  for (const [label] of found.flat()) totals.set(label, (totals.get(label) ?? 0) + 1);
  let allLabels = false;

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function bar(share) {
    const element = make("span", "bar");
    element.style.width = `${100 * share}%`;
    return element;
  }

  function showBars() {
    for (const label of state.labels) if (!labelCounts.has(label)) labelCounts.set(label, 0);
    const rows = [...labelCounts].sort((a, b) => b[1] - a[1] || compare(a[0], b[0]));
    const most = Math.max(1, ...labelCounts.values());
    const shown = rows.filter(([label], rank) => allLabels || rank < LABELS_AT_FIRST || state.labels.has(label));
    byId("bars").replaceChildren(...shown.map(([label, images]) => {
      const item = make("li");
      const button = make("button");
      button.type = "button";
      button.label = label;
      button.setAttribute("aria-pressed", state.labels.has(label));
      const name = make("span", label === ERROR_LABEL ? "name error" : "name", short(shownLabel(label)));
      name.dir = "auto";
      button.title = name.textContent;
      button.append(bar(images / most), name, make("span", "count", number.format(images)));
      item.append(button);
      return item;
    }));
    const hidden = rows.length - shown.length;
    byId("more-labels").hidden = hidden === 0;
    byId("more-labels").textContent = `${number.format(hidden)} more labels`;
  }

  // The grid: only the rows in view are in the document.

  const grid = byId("grid");
  const space = byId("space");
  const cards = new Map();
  let columns = 1;
  let rowHeight = 1;
  // The record that the keyboard is at.
  let active = null;

  function thumbnail(index) {
    const value = records[index][THUMBNAIL];
    if (value === null) return null;
    if (typeof value === "string") return `data:image/jpeg;base64,${value}`;
    return `${settings.folder}/${String(value).padStart(6, "0")}.jpg`;
  }

  function showTiny(image) {
    image.addEventListener("load", () => {
      image.classList.toggle("tiny", image.naturalWidth <= 64 && image.naturalHeight <= 64);
    });
  }

  function card(index) {
    const record = records[index];
    const item = make("li");
    const button = make("button", "card");
    button.type = "button";
    button.index = index;
    button.tabIndex = -1;
    const frame = make("span", "frame");
    const source = thumbnail(index);
    if (source === null) {
      frame.append(make("span", "none", record[ERROR] === null ? "no thumbnail" : short(record[ERROR])));
    } else {
      const image = make("img");
      image.loading = "lazy";
      image.decoding = "async";
      image.draggable = false;
      image.alt = short(fileName(record[PATH]));
      showTiny(image);
      image.src = source;
      frame.append(image);
    }
    const caption = make("span", "caption");
    const best = make("span", "best");
    if (corrections.has(index)) {
      best.append(make("span", "text corrected", short(shownCorrection(corrections.get(index)))));
    } else if (record[ERROR] !== null) {
      best.append(make("span", "text error", shownLabel(ERROR_LABEL)));
    } else if (labels[index] === NO_LABEL) {
      best.append(make("span", several ? "text" : "text doubtful", shownLabel(NO_LABEL)));
      if (!Number.isNaN(scores[index])) {
        best.append(make("span", doubtful[index] ? "score doubtful" : "score", shownScore(scores[index])));
      }
    } else {
      const more = found[index].length - 1;
      best.append(
        make("span", "text", short(found[index].map(([label]) => label).join(" · "))),
        make("span", doubtful[index] ? "score doubtful" : "score", more ? "" : shownScore(scores[index])),
      );
    }
    const file = make("span", "text file", short(fileName(record[PATH])));
    file.dir = best.firstChild.dir = "auto";
    // The image's alternative text says it already.
    if (source !== null) file.setAttribute("aria-hidden", "true");
    caption.append(best, file);
    button.append(frame, caption);
    button.title = short(record[PATH]);
    if (correctable) showSelected(button);
    item.append(button);
    return item;
  }

  function measure() {
    const width = space.clientWidth;
    columns = Math.max(2, Math.floor((width + GAP) / (180 + GAP)));
    rowHeight = Math.round((width - GAP * (columns - 1)) / columns * 0.85) + CAPTION + GAP;
    const rows = Math.ceil(selection.length / columns);
    space.style.height = `${Math.max(0, rows * rowHeight - GAP)}px`;
    grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
    grid.style.gridAutoRows = `${rowHeight - GAP}px`;
  }

  function showRows() {
    const top = -space.getBoundingClientRect().top;
    const rows = Math.ceil(selection.length / columns);
    const first = Math.min(Math.max(0, Math.floor(top / rowHeight) - 2), Math.max(0, rows - 1));
    const last = Math.min(rows, Math.ceil((top + innerHeight) / rowHeight) + 2);
    grid.style.transform = `translateY(${first * rowHeight}px)`;
    const wanted = selection.slice(first * columns, Math.max(first, last) * columns);
    const keep = new Set(wanted);
    for (const [index, item] of cards) {
      if (!keep.has(index)) {
        item.remove();
        cards.delete(index);
      }
    }
    let before = grid.firstChild;
    for (const index of wanted) {
      let item = cards.get(index);
      if (item === undefined) {
        item = card(index);
        cards.set(index, item);
      }
      if (item === before) before = before.nextSibling;
      else grid.insertBefore(item, before);
      item.setAttribute("aria-setsize", selection.length);
      item.setAttribute("aria-posinset", positions.get(index) + 1);
    }
    markActive();
  }

  function markActive() {
    const start = active !== null && cards.has(active) ? active : firstInView();
    for (const [index, item] of cards) item.firstChild.tabIndex = index === start ? 0 : -1;
  }

  function firstInView() {
    const top = Math.max(0, -space.getBoundingClientRect().top);
    return selection[Math.min(selection.length - 1, Math.ceil(top / rowHeight) * columns)];
  }

  function activate(position) {
    if (!selection.length) return;
    position = Math.min(selection.length - 1, Math.max(0, position));
    active = selection[position];
    const top = space.getBoundingClientRect().top + Math.floor(position / columns) * rowHeight;
    const controls = byId("controls");
    const covered = getComputedStyle(controls).position === "sticky" ? controls.offsetHeight + 8 : 8;
    if (top < covered) scrollBy(0, top - covered);
    else if (top + rowHeight > innerHeight) scrollBy(0, top + rowHeight - innerHeight);
    showRows();
    cards.get(active)?.firstChild.focus({ preventScroll: true });
  }

  // All of it together.

  function show() {
    filter();
    showBars();
    measure();
    showRows();
    byId("empty").hidden = selection.length > 0;
    byId("download").disabled = selection.length === 0;
    const status = `${number.format(selection.length)} of ${number.format(count)} ${count === 1 ? "image" : "images"}`;
    // Only what is new is read out.
    if (byId("status").textContent !== status) byId("status").textContent = status;
  }

  function change(changes) {
    Object.assign(state, changes);
    writeAddress();
    show();
  }

  function reset() {
    change({ ...DEFAULTS, labels: new Set() });
    fillControls();
  }

  // The detail view.

  const detail = byId("detail");
  const picture = byId("picture");

  picture.addEventListener("error", () => {
    // The image itself is not there, or in no format that a browser shows.
    const small = state.open === null ? null : thumbnail(state.open);
    if (small !== null && picture.getAttribute("src") !== small) picture.src = small;
  });
  showTiny(picture);

  function open(index) {
    state.open = index;
    const record = records[index];
    byId("detail-title").textContent = short(fileName(record[PATH]));
    byId("path").textContent = visible(record[PATH]);
    byId("detail-error").textContent = record[ERROR] === null ? "" : visible(record[ERROR]);
    const source = thumbnail(index);
    picture.hidden = source === null;
    byId("no-picture").textContent = source === null ? "no picture" : "";
    picture.removeAttribute("src");
    if (source !== null) {
      picture.alt = `${short(fileName(record[PATH]))}, labelled ${short(shownLabel(labels[index]))}`;
      picture.src = record[LINK] ?? source;
    }
    byId("predictions").replaceChildren(...record[PREDICTIONS].map(([label, score]) => {
      const item = make("li");
      const name = make("span", "name", visible(label));
      name.dir = "auto";
      if (!raw) item.append(bar(score));
      item.classList.toggle("right", corrections.get(index) === label);
      item.append(name, make("span", "count", shownScore(score)));
      return item;
    }));
    byId("columns").replaceChildren(...settings.columns.flatMap((name, column) => {
      const value = record[COLUMNS][column];
      return value === null ? [] : [make("dt", "", name), make("dd", "", visible(String(value)))];
    }));
    byId("copy").textContent = "Copy path";
    const position = positions.get(index) ?? -1;
    byId("previous").disabled = position <= 0;
    byId("next").disabled = position < 0 || position >= selection.length - 1;
    if (correctable && byId("correct").parentElement !== byId("facts")) {
      byId("facts").insertBefore(byId("correct"), byId("columns"));
    }
    if (!detail.open) detail.showModal();
    writeAddress();
    showCorrections();
  }

  function step(by) {
    const position = positions.get(state.open) ?? -1;
    const next = selection[position + by];
    if (position < 0 || next === undefined) return;
    open(next);
    if (document.activeElement === document.body || document.activeElement.disabled) byId("close").focus();
  }

  detail.addEventListener("close", () => {
    const index = state.open;
    state.open = null;
    picture.removeAttribute("src");
    writeAddress();
    if (correctable) {
      space.before(byId("correct"));
      showCorrections();
    }
    if (positions.has(index)) activate(positions.get(index));
  });
  detail.addEventListener("click", (event) => {
    // The backdrop is the dialog itself.
    if (event.target === detail) detail.close();
  });
  byId("close").addEventListener("click", () => detail.close());
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));

  byId("copy").addEventListener("click", async () => {
    const path = records[state.open][PATH];
    let copied = true;
    try {
      await navigator.clipboard.writeText(path);
    } catch {
      // No permission, or no such thing for a file: the old way, by a selection.
      const text = make("textarea");
      text.value = path;
      detail.append(text);
      text.select();
      copied = document.execCommand("copy");
      text.remove();
      byId("copy").focus();
    }
    byId("copy").textContent = copied ? "Copied" : "Not copied";
  });

  // What the keys and buttons for corrections do.

  function showSelected(button) {
    button.classList.toggle("selected", selected.has(button.index));
    button.setAttribute("aria-pressed", selected.has(button.index));
  }

  function showCorrections() {
    if (!correctable) return;
    const parts = [`${number.format(corrections.size)} corrected`];
    if (selected.size && !detail.open) parts.push(`${number.format(selected.size)} selected`);
    if (!kept) parts.push("not kept by this browser: save before you leave");
    byId("corrections").textContent = parts.join(", ");
    byId("corrected-count").textContent = number.format(corrections.size);
    byId("undo").disabled = !undone.length;
    byId("save").disabled = !corrections.size;
    byId("unselect").hidden = !selected.size || detail.open;
  }

  // The image in the larger view; else those selected; else the one that the keyboard is at.
  function targets() {
    const chosen = detail.open ? [state.open] : selected.size ? [...selected] : active === null ? [] : [active];
    return chosen.filter((index) => records[index][ERROR] === null);
  }

  function renew(indexes) {
    const focused = document.activeElement.matches(".card") ? document.activeElement.index : null;
    for (const index of indexes) {
      cards.get(index)?.remove();
      cards.delete(index);
    }
    showRows();
    if (focused !== null && !detail.open) cards.get(focused)?.firstChild.focus({ preventScroll: true });
    if (detail.open) open(state.open);
    showCorrections();
  }

  // Args: pairs of an image and its label, undefined for no correction.
  function correct(pairs, remember = true) {
    if (!pairs.length) return;
    if (remember) undone.push(pairs.map(([index]) => [index, corrections.get(index)]));
    for (const [index, label] of pairs) {
      if (label === undefined) corrections.delete(index);
      else corrections.set(index, label);
    }
    keep();
    renew(pairs.map(([index]) => index));
  }

  function correctTo(label) {
    const indexes = targets();
    selected.clear();
    correct(indexes.map((index) => [index, label]));
    for (const item of cards.values()) showSelected(item.firstChild);
  }

  function select(index) {
    if (!selected.delete(index)) selected.add(index);
    const item = cards.get(index);
    if (item) showSelected(item.firstChild);
    showCorrections();
  }

  function unselect() {
    selected.clear();
    for (const item of cards.values()) showSelected(item.firstChild);
    showCorrections();
  }

  function undo() {
    if (undone.length) correct(undone.pop(), false);
  }

  // Whether a key was one of these.
  function correctByKey(key) {
    if (!correctable) return false;
    if (/^[1-5]$/.test(key)) {
      // Of several images, each to its own.
      const pairs = targets().map((index) => [index, records[index][PREDICTIONS][key - 1]?.[0]]);
      selected.clear();
      correct(pairs.filter(([, label]) => label !== undefined));
      for (const item of cards.values()) showSelected(item.firstChild);
    } else if (key === "0") correctTo("");
    else if (key === "Delete" || key === "Backspace") correctTo(undefined);
    else if (key === "u" || key === "U") undo();
    else if (key === "l" || key === "L") byId("right-label").focus();
    else if ((key === "x" || key === "X") && !detail.open && active !== null) select(active);
    else return false;
    return true;
  }

  if (correctable) {
    const known = new Set(records.flatMap((record) => record[PREDICTIONS].map(([label]) => label)));
    for (const label of [...known].sort(compare)) {
      const option = make("option");
      option.value = label;
      byId("known-labels").append(option);
    }
    byId("correct").addEventListener("submit", (event) => {
      event.preventDefault();
      const label = byId("right-label").value.trim();
      if (!label) return;
      byId("right-label").value = "";
      correctTo(label);
      // The keys are for the images again.
      byId("right-label").blur();
      if (!detail.open && active !== null) cards.get(active)?.firstChild.focus({ preventScroll: true });
    });
    byId("none-of-these").addEventListener("click", () => correctTo(""));
    byId("undo").addEventListener("click", undo);
    byId("unselect").addEventListener("click", unselect);
    byId("save").addEventListener("click", () => {
      const rows = [...corrections].sort(([a], [b]) => a - b).map(([index, label]) =>
        [records[index][PATH], label, label === "" ? "" : "1.000000", labels[index]]);
      save(table([["path", "label", "score", "predicted"], ...rows]), "corrections.csv");
    });
    showCorrections();
  }

  // The selection as the same rows that `cvt classify -o labels.csv` writes.

  const quoted = (cell) => /[,"\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;

  const table = (rows) => rows.map((row) => row.map((cell) => quoted(String(cell))).join(",") + "\r\n").join("");

  function save(text, name) {
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  function csv() {
    const ranks = Array.from({ length: settings.topK }, (_, rank) => rank);
    const header = ["path", ...ranks.flatMap((rank) => rank ? [`label_${rank + 1}`, `score_${rank + 1}`] : ["label", "score"]), ...settings.columns, "error"];
    const rows = selection.map((index) => {
      const record = records[index];
      const predictions = ranks.flatMap((rank) => {
        const prediction = record[PREDICTIONS][rank];
        return prediction ? [prediction[0], raw ? Number(prediction[1].toPrecision(7)) : prediction[1].toFixed(6)] : ["", ""];
      });
      return [record[PATH], ...predictions, ...record[COLUMNS].map((value) => value ?? ""), record[ERROR] ?? ""];
    });
    return table([header, ...rows]);
  }

  byId("download").addEventListener("click", () => save(csv(), `${settings.name}-selection.csv`));

  // Controls.

  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("search").addEventListener("input", (event) => change({ q: event.target.value }));
  byId("min").addEventListener("input", (event) => change({ min: limited(event.target.value, DEFAULTS.min) }));
  byId("max").addEventListener("input", (event) => change({ max: limited(event.target.value, DEFAULTS.max) }));
  byId("sort").addEventListener("change", (event) => change({ sort: event.target.value }));
  for (const radio of document.querySelectorAll("input[name=view]")) {
    radio.addEventListener("change", () => change({ view: radio.value }));
  }
  byId("reset").addEventListener("click", reset);
  byId("empty-reset").addEventListener("click", reset);
  byId("bars").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button === null) return;
    const chosen = new Set(state.labels);
    if (!chosen.delete(button.label)) chosen.add(button.label);
    const label = button.label;
    change({ labels: chosen });
    [...byId("bars").querySelectorAll("button")].find((each) => each.label === label)?.focus();
  });
  byId("more-labels").addEventListener("click", () => {
    allLabels = true;
    showBars();
  });
  grid.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button === null) return;
    active = button.index;
    if (correctable && (event.ctrlKey || event.metaKey || event.shiftKey)) select(button.index);
    else open(button.index);
  });
  grid.addEventListener("focusin", (event) => {
    active = event.target.index;
    markActive();
  });

  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input, select, textarea");
    if ((event.ctrlKey || event.metaKey) && event.key === "z" && !typing && correctable) {
      undo();
      event.preventDefault();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (!typing && correctByKey(event.key)) {
      event.preventDefault();
      return;
    }
    if (detail.open) {
      if (typing) return;
      if (event.key === "ArrowLeft") step(-1);
      else if (event.key === "ArrowRight") step(1);
      else return;
      event.preventDefault();
      return;
    }
    if (event.key === "/" && !typing) {
      byId("search").focus();
      byId("search").select();
      event.preventDefault();
    } else if (event.target.id === "search" && (event.key === "Enter" || event.key === "ArrowDown")) {
      activate(0);
      event.preventDefault();
    } else if (event.target.id === "search" && event.key === "Escape") {
      event.target.value = "";
      change({ q: "" });
      event.preventDefault();
    } else if (!typing) {
      move(event);
    }
  });

  function move(event) {
    const inGrid = event.target.matches(".card");
    const page = Math.max(1, Math.floor(innerHeight / rowHeight) - 1) * columns;
    const steps = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns,
      PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity,
    };
    const by = steps[event.key];
    // Elsewhere on the page the arrows begin to move, and the others scroll.
    if (by === undefined || (!inGrid && (!event.key.startsWith("Arrow") || event.target !== document.body))) return;
    event.preventDefault();
    if (!inGrid) {
      activate(positions.get(active ?? firstInView()) ?? 0);
      return;
    }
    const position = positions.get(event.target.index);
    const target = position + by;
    // A step up from the first row or down from the last one stays.
    if (Math.abs(by) === columns && columns > 1 && (target < 0 || Math.floor(target / columns) > Math.floor((selection.length - 1) / columns))) return;
    activate(target);
  }

  let scheduled = false;
  addEventListener("scroll", () => {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      showRows();
    });
  }, { passive: true });
  const resized = new ResizeObserver(() => {
    document.documentElement.style.setProperty("--controls-height", `${byId("controls").offsetHeight}px`);
    measure();
    showRows();
  });
  resized.observe(byId("body"));
  resized.observe(byId("controls"));
  addEventListener("hashchange", start);

  function start() {
    readAddress();
    fillControls();
    show();
    if (state.open !== null) open(state.open);
    else if (detail.open) detail.close();
  }

  byId("totals").textContent = `${number.format(count)} ${count === 1 ? "image" : "images"}, `
    + `${number.format(totals.size - totals.has(ERROR_LABEL) - totals.has(NO_LABEL))} labels, `
    + (raw ? "" : `${number.format(doubts)} doubtful, `)
    + `${number.format(errors)} ${errors === 1 ? "error" : "errors"}`;
  byId("errors-count").textContent = number.format(errors);
  if (!raw) byId("doubtful-count").textContent = number.format(doubts);
  if (innerWidth < 900) byId("labels").open = false;
  start();
})();

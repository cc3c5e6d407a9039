'use strict';
// The table of cases, the charts' points, and one case to look at.
const data = JSON.parse(document.getElementById('data').textContent);
const byId = (id) => document.getElementById(id);
const rows = [...document.querySelectorAll('#cases tbody tr')];

// The table.
function sortBy(index, ascending) {
  const value = (row) => row.cells[index].dataset.value;
  const numbers = rows.every((row) => value(row) === '' || !isNaN(value(row)));
  rows.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if ((x === '') !== (y === '')) return x === '' ? 1 : -1;  // unknown ones last
    const order = numbers ? x - y : x.localeCompare(y, undefined, { numeric: true });
    return ascending ? order : -order;
  });
  rows[0]?.parentElement.append(...rows);
  [...document.querySelectorAll('#cases th')].forEach((head, i) => {
    if (i === index) head.setAttribute('aria-sort', ascending ? 'ascending' : 'descending');
    else head.removeAttribute('aria-sort');
  });
}

function filter() {
  const part = byId('name').value.toLowerCase();
  const below = byId('below').value;
  for (const row of rows) {
    const one = data.cases[Number(row.dataset.case)];
    row.hidden = !one.name.toLowerCase().includes(part) ||
      (below !== '' && (one.dice === null || one.dice >= Number(below))) ||
      (byId('odd').checked && !one.warnings.length);
  }
  byId('count').textContent =
    `${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`;
}

document.querySelectorAll('#cases th').forEach((head, i) => {
  head.querySelector('button').addEventListener('click', () => {
    sortBy(i, head.getAttribute('aria-sort') !== 'ascending');
  });
});
for (const id of ['name', 'below', 'odd']) byId(id).addEventListener('input', filter);
rows.forEach((row) => row.addEventListener('click', () => open(Number(row.dataset.case))));
sortBy(1, true);
filter();

// The charts: one stop of the tab key each, arrow keys within.
for (const svg of document.querySelectorAll('.chart svg')) {
  const points = [...svg.querySelectorAll('.case')];
  const sorted = points.slice().sort((a, b) => a.getAttribute('cx') - b.getAttribute('cx'));
  if (sorted.length) sorted[0].tabIndex = 0;
  svg.addEventListener('click', (event) => {
    const point = event.target.closest('.case');
    if (point) open(Number(point.dataset.case));
  });
  svg.addEventListener('keydown', (event) => {
    const at = sorted.indexOf(document.activeElement);
    if (at < 0) return;
    const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (by) {
      sorted[at].tabIndex = -1;
      const other = sorted[(at + by + sorted.length) % sorted.length];
      other.tabIndex = 0;
      other.focus();
    } else if (event.key === 'Enter' || event.key === ' ') {
      open(Number(sorted[at].dataset.case));
    } else return;
    event.preventDefault();
  });
}

// One case.
const dialog = byId('case');
const viewer = new Slices(document.querySelectorAll('figure.slices'));
const IGNORED = 255;
const ERRORS = [null, [230, 80, 0], [86, 180, 233], [240, 228, 66]];
const hidden = new Set();  // classes that are not shown
let current = -1, grey = null, blank = null, layers = null;

data.classes.forEach(({ name, colour }, index) => {
  if (!index) return;
  const label = document.createElement('label');
  const box = document.createElement('input');
  box.type = 'checkbox';
  box.checked = true;
  box.addEventListener('change', () => {
    if (box.checked) hidden.delete(index); else hidden.add(index);
    arrange();
  });
  const key = document.createElement('i');
  key.className = 'key';
  key.style.background = `rgb(${colour})`;
  label.append(box, key, name);
  byId('classes').append(label);
});
byId('classes').hidden = data.classes.length < 3;

function cell(kind, text) {
  const made = document.createElement(kind);
  made.textContent = text;
  return made;
}

function short(value, digits) {
  if (value === null || value === undefined) return '–';
  return Number.isInteger(value) ? String(value) : value.toFixed(digits);
}

// All numbers of a case.
function tell(one) {
  byId('case-name').textContent = one.name;
  const told = [one.dice === null ? 'no foreground' : `mean Dice ${one.dice.toFixed(3)}`];
  if (one.facts) {
    const turned = (values) => values.slice().reverse();
    told.push(turned(one.facts.shape).join(' × ') + (one.facts.shape.length > 2 ?
      ` voxels of ${turned(one.facts.spacing).map((x) => +x.toPrecision(3)).join(' × ')} mm` :
      ' pixels'));
    if (one.view && Math.max(...one.view.steps) > 1) {
      told.push(`shown in blocks of ${turned(one.view.steps).join(' × ')}`);
    }
  }
  byId('case-about').textContent = told.join('; ') + '.';
  const list = byId('case-warnings');
  list.hidden = !one.warnings.length;
  list.replaceChildren(...one.warnings.map((line) => cell('li', line)));
  const table = byId('case-scores');
  const keys = [...new Set(Object.values(one.scores).flatMap(Object.keys))];
  const head = document.createElement('tr');
  head.append(cell('th', 'class'), ...keys.map((key) => cell('th', key.replaceAll('_', ' '))));
  const lines = Object.entries(one.scores).map(([name, of]) => {
    const line = document.createElement('tr');
    line.append(cell('th', name), ...keys.map((key) => cell('td', short(of[key], 3))));
    return line;
  });
  table.replaceChildren(head, ...lines);
}

async function open(index) {
  const one = data.cases[index];
  [current, layers] = [index, null];
  delete dialog.dataset.ready;
  tell(one);
  byId('viewer').hidden = !one.view;
  byId('no-view').hidden = Boolean(one.view);
  if (!dialog.open) dialog.showModal();
  if (!one.view) return;
  const { view } = one;
  const [truth, prediction] = await unpackMosaic(view.masks, view.shape, view.columns, [0, 1]);
  blank = new Uint8Array(truth.length).fill(90);
  grey = [blank];
  if (view.image) {
    grey = await unpackMosaic(view.image, view.shape, view.columns, [0, 1, 2]);
    if (grey[0].every((value, i) => value === grey[1][i])) grey = [grey[0]];
  }
  if (current !== index) return;  // another was opened meanwhile
  const wrong = truth.map((t, i) => {
    const p = prediction[i];
    if (t === p || t === IGNORED) return 0;
    return !p ? 1 : !t ? 2 : 3;
  });
  layers = {
    truth: { mask: truth, opacity: 0.45, outline: false },
    errors: { mask: wrong, colours: ERRORS, opacity: 0.75, outline: false },
    prediction: { mask: prediction, opacity: 1, outline: true },
  };
  const flat = view.rank === 2;
  document.querySelector('.views').classList.toggle('of-image', flat);
  for (const id of ['picture', 'level', 'width']) byId(id).parentElement.hidden = !view.image;
  byId('window').hidden = !view.image;
  byId('drag').value = flat ? 'move' : 'window';
  [viewer.level, viewer.width, viewer.drag] = [127.5, 255, byId('drag').value];
  viewer.show({ ...view, flat, bases: grey, layers: Object.values(layers) }, view.start);
  arrange();
  dialog.dataset.ready = one.name;
}

// Draws what is asked for.
function arrange() {
  if (!layers) return;
  const colours = data.classes.map(({ colour }, i) => (i && !hidden.has(i) ? colour : null));
  layers.prediction.colours = colours;
  layers.truth.colours = colours.slice();
  layers.truth.colours[IGNORED] = [128, 128, 128];
  for (const name in layers) layers[name].on = byId(name).checked;
  if (layers.errors.on) layers.truth.on = false;
  layers.truth.opacity = Number(byId('opacity').value) / 100;
  viewer.volume.bases = byId('picture').checked ? grey : [blank];
  byId('level').value = viewer.level;
  byId('width').value = viewer.width;
  const { window: [low, high] } = data.cases[current].view;
  const units = (x) => low + (high - low) * x / 255;
  const [from, to] = [viewer.level - viewer.width / 2, viewer.level + viewer.width / 2];
  byId('window').textContent =
    `${+units(from).toPrecision(3)} to ${+units(to).toPrecision(3)}`;
  viewer.draw();
}

viewer.changed = arrange;
for (const id of ['truth', 'prediction', 'errors', 'picture', 'opacity']) {
  byId(id).addEventListener('input', arrange);
}
for (const id of ['level', 'width']) {
  byId(id).addEventListener('input', () => { viewer[id] = Number(byId(id).value); arrange(); });
}
byId('drag').addEventListener('change', () => { viewer.drag = byId('drag').value; });
byId('larger').addEventListener('click', () => viewer.enlarge(1.5));
byId('smaller').addEventListener('click', () => viewer.enlarge(1 / 1.5));
byId('fit').addEventListener('click', () => viewer.fit());

// To the case before or after, as the table is sorted and filtered.
function step(by) {
  const shown = rows.filter((row) => !row.hidden).map((row) => Number(row.dataset.case));
  if (!shown.length) return;
  const at = shown.indexOf(current);
  open(shown[(Math.max(at, 0) + by + shown.length) % shown.length]);
}
byId('previous').addEventListener('click', () => step(-1));
byId('next').addEventListener('click', () => step(1));
byId('close').addEventListener('click', () => dialog.close());
document.body.dataset.ready = 'yes';

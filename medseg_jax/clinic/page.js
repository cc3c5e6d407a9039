'use strict';
// Slices and surfaces of one mask, and the table's rows, which lead to places.
const data = JSON.parse(document.getElementById('data').textContent);
const byId = (id) => document.getElementById(id);
const shown = data.classes.map(() => true);
const viewer = new Slices(document.querySelectorAll('figure.slices'));
const turn = surfaces(data, shown);
const layer = { mask: null, outline: false };

function arrange() {
  if (!viewer.volume) return;
  layer.on = byId('masks').checked;
  layer.opacity = Number(byId('opacity').value) / 100;
  layer.colours = [null, ...data.classes.map(({ colour }, i) => (shown[i] ? colour : null))];
  viewer.level = 255 - Number(byId('level').value);
  viewer.width = 255 / (Number(byId('width').value) / 100);
  viewer.draw();
}

// Rows of the table: mm in the patient, to the voxel there.
document.querySelectorAll('tr[data-at]').forEach((line) => {
  const show = (event) => {
    if (event.target.tagName === 'INPUT' || !viewer.volume) return;
    const [left, posterior, superior] = line.dataset.at.split(' ').map(Number);
    const m = data.to_voxel;
    for (let axis = 0; axis < 3; axis++) {
      viewer.go(axis, m[axis][0] * left + m[axis][1] * posterior + m[axis][2] * superior + m[axis][3]);
    }
    viewer.draw();
  };
  line.addEventListener('click', show);
  line.addEventListener('keydown', (event) => { if (event.key === 'Enter') show(event); });
});
document.querySelectorAll('input[data-class]').forEach((box) => {
  box.addEventListener('change', () => {
    for (const index of data.members[Number(box.dataset.class)]) shown[index] = box.checked;
    arrange();
    turn();
  });
});
for (const id of ['masks', 'opacity', 'level', 'width']) byId(id).addEventListener('input', arrange);

const unpack = async (address) =>
  (await unpackMosaic(address, data.shape, data.columns, [0]))[0];
const channel = byId('channel');
data.images.forEach((_, i) => channel.add(new Option(i, i)));
byId('which').hidden = data.images.length < 2;
channel.addEventListener('change', async () => {
  const wanted = channel.value;
  const found = await unpack(data.images[Number(wanted)].src);
  if (wanted !== channel.value) return;  // another was chosen meanwhile
  viewer.volume.bases = [found];
  viewer.draw();
});
window.addEventListener('resize', turn);

(async () => {
  layer.mask = await unpack(data.mask);
  const bases = [await unpack(data.images[0].src)];
  viewer.show({ ...data, origin: [0, 0, 0], bases, layers: [layer] }, data.start);
  arrange();
  turn();
  document.body.dataset.ready = 'yes';
})();

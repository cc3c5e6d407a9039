'use strict';
// Slices of a volume in three planes, with masks over them. A volume is flat, in
// the order z, y, x; an image is a volume of one slice, of which one plane shows.

// For each plane: the axes of its rows and columns, and whether rows run upward.
const PLANES = [
  { across: 0, row: 1, column: 2, up: false },
  { across: 1, row: 0, column: 2, up: true },
  { across: 2, row: 0, column: 1, up: true },
];

// Returns the channels asked for (0 red, 1 green, 2 blue) of a picture in which
// all slices lie side by side, each as Uint8Array of the whole volume.
async function unpackMosaic(address, shape, columns, channels) {
  const [depth, height, width] = shape;
  const image = new Image();
  image.src = address;
  await image.decode();
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [image.width, image.height];
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const found = channels.map(() => new Uint8Array(depth * height * width));
  for (let z = 0; z < depth; z++) {
    const left = (z % columns) * width;
    const top = Math.floor(z / columns) * height;
    const tile = context.getImageData(left, top, width, height).data;
    channels.forEach((channel, k) => {
      let to = z * height * width;
      for (let i = channel; i < tile.length; i += 4) found[k][to++] = tile[i];
    });
  }
  return found;
}

class Slices {
  // `figures`: three, as slices.html has them. What the mouse does when it drags
  // is `drag`: 'place' (go there), 'window' (level and width) or 'move'.
  constructor(figures) {
    this.figures = [...figures];
    this.canvases = this.figures.map((figure) => figure.querySelector('canvas'));
    this.sliders = this.figures.map((figure) => figure.querySelector('input'));
    this.drag = 'place';
    this.level = 127.5;
    this.width = 255;
    this.changed = () => {};  // called when dragging changes level or width
    this.volume = null;
    PLANES.forEach((plane, i) => this.listen(plane, i));
    new ResizeObserver(() => this.draw()).observe(this.figures[0].parentElement);
  }

  // `volume`: shape, full (before it was cut and thinned), origin and steps (of
  // what is shown in that), spacing, bases (one or three channels) and layers,
  // each {mask, colours (by value, null for none), opacity, outline, on}; `flat` is
  // an image and not a volume.
  show(volume, start) {
    this.volume = volume;
    this.at = start.slice();
    const [, height, width] = volume.shape;
    this.strides = [height * width, width, 1];
    this.flat = Boolean(volume.flat);
    this.figures.forEach((figure, i) => { figure.hidden = this.flat && i > 0; });
    this.figures[0].classList.toggle('flat', this.flat);
    this.sliders[0].hidden = this.flat;
    this.fit();
  }

  fit() {
    this.zoom = 1;
    this.shift = [0, 0];
    this.draw();
  }

  go(axis, place) {
    const last = this.volume.shape[axis] - 1;
    this.at[axis] = Math.max(0, Math.min(last, Math.round(place)));
  }

  enlarge(by) {
    this.zoom = Math.min(16, Math.max(1, this.zoom * by));
    if (this.zoom === 1) this.shift = [0, 0];
    this.draw();
  }

  draw() {
    if (!this.volume) return;
    PLANES.forEach((plane, i) => { if (!this.figures[i].hidden) this.drawPlane(plane, i); });
  }

  drawPlane({ across, row, column, up }, i) {
    const { shape, spacing, bases, layers } = this.volume;
    const { at, strides } = this;
    const canvas = this.canvases[i];
    const [rows, columns] = [shape[row], shape[column]];
    // Kept in main memory: it is written pixel by pixel.
    const context = canvas.getContext('2d', { willReadFrequently: true });
    if (canvas.width !== columns || canvas.height !== rows) {
      [canvas.width, canvas.height] = [columns, rows];
    }
    const picture = context.createImageData(columns, rows);
    const slope = 255 / this.width;
    const shown = layers.filter((layer) => layer.on);
    const [red, green, blue] = bases.length === 3 ? bases : [bases[0], bases[0], bases[0]];
    for (let r = 0; r < rows; r++) {
      const from = at[across] * strides[across] + (up ? rows - 1 - r : r) * strides[row];
      for (let c = 0; c < columns; c++) {
        const voxel = from + c * strides[column];
        let R = (red[voxel] - this.level) * slope + 127.5;
        let G = (green[voxel] - this.level) * slope + 127.5;
        let B = (blue[voxel] - this.level) * slope + 127.5;
        for (const layer of shown) {
          const colour = layer.colours[layer.mask[voxel]];
          if (!colour) continue;
          if (layer.outline && !this.isEdge(layer.mask, voxel, r, c, PLANES[i])) continue;
          const a = layer.opacity;
          // What is outside the window would shine through otherwise.
          R = Math.min(255, Math.max(0, R)) * (1 - a) + colour[0] * a;
          G = Math.min(255, Math.max(0, G)) * (1 - a) + colour[1] * a;
          B = Math.min(255, Math.max(0, B)) * (1 - a) + colour[2] * a;
        }
        const to = 4 * (r * columns + c);
        picture.data[to] = R;
        picture.data[to + 1] = G;
        picture.data[to + 2] = B;
        picture.data[to + 3] = 255;
      }
    }
    context.putImageData(picture, 0, 0);
    if (!this.flat) {
      context.fillStyle = 'rgba(143, 180, 255, 0.35)';
      context.fillRect(0, up ? rows - 1 - at[row] : at[row], columns, 1);
      context.fillRect(at[column], 0, 1, rows);
    }
    // A voxel is as large as it is in the patient, whatever its shape.
    const [tall, wide] = [rows * spacing[row], columns * spacing[column]];
    const screen = canvas.parentElement;
    const scale = Math.min((screen.clientWidth - 56) / wide, (screen.clientHeight - 44) / tall);
    canvas.style.width = wide * scale + 'px';
    canvas.style.height = tall * scale + 'px';
    canvas.style.transform =
      `translate(${this.shift[0]}px, ${this.shift[1]}px) scale(${this.zoom})`;
    canvas.style.touchAction = this.zoom > 1 ? 'none' : 'pan-y';
    this.sliders[i].min = 0;
    this.sliders[i].max = shape[across] - 1;
    this.sliders[i].value = at[across];
    const { origin, steps, full } = this.volume;
    const place = origin[across] + at[across] * steps[across] + 1;
    const words = this.flat ? '' : `slice ${place} of ${full[across]}`;
    this.figures[i].querySelector('.place').textContent = words;
    this.sliders[i].setAttribute('aria-valuetext', words);
  }

  // Whether a voxel of a mask has a neighbour of another class in the plane.
  isEdge(mask, voxel, r, c, { row, column, up }) {
    const { shape } = this.volume;
    const of = mask[voxel];
    const [y, x] = [up ? shape[row] - 1 - r : r, c];
    const [down, right] = [this.strides[row], this.strides[column]];
    return (y > 0 && mask[voxel - down] !== of) || (x > 0 && mask[voxel - right] !== of) ||
      (y < shape[row] - 1 && mask[voxel + down] !== of) ||
      (x < shape[column] - 1 && mask[voxel + right] !== of);
  }

  // Goes to the place of the mouse in a plane.
  pick({ row, column, up }, canvas, event) {
    const { shape } = this.volume;
    const box = canvas.getBoundingClientRect();
    const down = Math.floor((event.clientY - box.top) / box.height * shape[row]);
    this.go(row, up ? shape[row] - 1 - down : down);
    this.go(column, Math.floor((event.clientX - box.left) / box.width * shape[column]));
    this.draw();
  }

  listen(plane, i) {
    const { across, up } = plane;
    const [canvas, slider] = [this.canvases[i], this.sliders[i]];
    const step = (by) => { this.go(across, this.at[across] + by); this.draw(); };
    slider.addEventListener('input', () => { this.go(across, Number(slider.value)); this.draw(); });
    canvas.parentElement.addEventListener('wheel', (event) => {
      event.preventDefault();
      if (this.flat || event.ctrlKey) this.enlarge(Math.exp(-event.deltaY / 400));
      else step((up || across === 0 ? -1 : 1) * Math.sign(event.deltaY));
    }, { passive: false });
    let pressed = null;
    canvas.addEventListener('pointerdown', (event) => {
      if (event.button) return;
      pressed = { moved: false };
      canvas.setPointerCapture(event.pointerId);
      if (this.drag === 'place' && !this.flat) this.pick(plane, canvas, event);
    });
    canvas.addEventListener('pointermove', (event) => {
      if (!pressed || !(event.buttons & 1)) return;
      const [right, down] = [event.movementX, event.movementY];
      if (Math.abs(right) + Math.abs(down) > 1) pressed.moved = true;
      if (this.drag === 'window') {
        this.width = Math.min(510, Math.max(5, this.width + right));
        this.level = Math.min(255, Math.max(0, this.level + down));
        this.changed();
      } else if (this.drag === 'move') {
        this.shift = [this.shift[0] + right, this.shift[1] + down];
      } else if (!this.flat) {
        this.pick(plane, canvas, event);
        return;
      }
      this.draw();
    });
    canvas.addEventListener('pointerup', (event) => {
      if (pressed && !pressed.moved && !this.flat) this.pick(plane, canvas, event);
      pressed = null;
    });
    canvas.addEventListener('pointercancel', () => { pressed = null; });
    canvas.addEventListener('keydown', (event) => {
      const moves = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
      if (event.key === '+' || event.key === '=') this.enlarge(1.25);
      else if (event.key === '-') this.enlarge(0.8);
      else if (event.key === '0') this.fit();
      else if (!this.flat && (event.key === 'ArrowUp' || event.key === 'PageUp')) step(1);
      else if (!this.flat && (event.key === 'ArrowDown' || event.key === 'PageDown')) step(-1);
      else if (this.zoom > 1 && moves[event.key]) {
        this.shift = this.shift.map((x, k) => x + moves[event.key][k]);
        this.draw();
      } else return;
      event.preventDefault();
    });
  }
}

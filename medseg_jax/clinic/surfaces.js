'use strict';
// Shows the surfaces, lit from the viewer's side. Returns what paints them anew.
// `shown`: whether each class is, changed from outside.
function surfaces(data, shown) {
  const solid = document.getElementById('solid');
  const gl = solid.getContext('webgl2', { antialias: true, preserveDrawingBuffer: true });
  if (!gl || !data.surfaces.length) {
    document.getElementById('turned').textContent =
      data.surfaces.length ? 'this browser shows none (no WebGL)' : 'none: the mask is empty';
    return () => {};
  }
  const vertex = `#version 300 es
    in vec3 place, normal;
    uniform mat3 turned;
    uniform float zoom, aspect;
    out vec3 facing;
    void main() {
      facing = turned * normal;
      vec3 p = turned * place;
      gl_Position = vec4(p.x * zoom / max(aspect, 1.0), p.y * zoom * min(aspect, 1.0),
        p.z * 0.5, 1.0);
    }`;
  const fragment = `#version 300 es
    precision highp float;
    in vec3 facing;
    uniform vec3 colour;
    out vec4 pixel;
    void main() {
      vec3 n = normalize(facing);
      float light = 0.3 + 0.6 * max(dot(n, normalize(vec3(-0.3, 0.5, -0.8))), 0.0)
        + 0.15 * max(-n.z, 0.0);
      pixel = vec4(colour * light, 1.0);
    }`;
  const program = gl.createProgram();
  [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]].forEach(([kind, source]) => {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  });
  gl.linkProgram(program);
  gl.useProgram(program);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  const bodies = data.surfaces.map(({ vertices, faces }, i) => {
    const packed = new Int16Array(bytes(vertices));
    const corners = new Uint32Array(bytes(faces));
    const places = Float32Array.from(packed, (v) => v / 32767);
    const normals = new Float32Array(places.length);
    for (let f = 0; f < corners.length; f += 3) {
      const [a, b, c] = [0, 1, 2].map((k) => 3 * corners[f + k]);
      const u = [0, 1, 2].map((k) => places[b + k] - places[a + k]);
      const v = [0, 1, 2].map((k) => places[c + k] - places[a + k]);
      for (let k = 0; k < 3; k++) {
        const [p, q] = [(k + 1) % 3, (k + 2) % 3];
        const area = u[p] * v[q] - u[q] * v[p];
        for (const corner of [a, b, c]) normals[corner + k] += area;
      }
    }
    const array = gl.createVertexArray();
    gl.bindVertexArray(array);
    [['place', places], ['normal', normals]].forEach(([name, values]) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
      gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
      const where = gl.getAttribLocation(program, name);
      gl.enableVertexAttribArray(where);
      gl.vertexAttribPointer(where, 3, gl.FLOAT, false, 0, 0);
    });
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, corners, gl.STATIC_DRAW);
    return { array, count: corners.length, colour: data.classes[i].colour.map((c) => c / 255) };
  });
  const uniform = (name) => gl.getUniformLocation(program, name);
  gl.enable(gl.DEPTH_TEST);
  gl.clearColor(0.05, 0.06, 0.07, 1);
  // From the front: the patient's left is on the right, superior is up.
  let turned = [[1, 0, 0], [0, 0, 1], [0, 1, 0]], zoom = 0.8;
  const times = (a, b) => a.map((line) => [0, 1, 2].map((j) =>
    line.reduce((sum, value, k) => sum + value * b[k][j], 0)));
  const paint = () => {
    [solid.width, solid.height] = [solid.clientWidth, solid.clientHeight].map(
      (size) => size * (window.devicePixelRatio || 1));
    gl.viewport(0, 0, solid.width, solid.height);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const columns = [0, 1, 2].flatMap((j) => turned.map((line) => line[j]));
    gl.uniformMatrix3fv(uniform('turned'), false, columns);
    gl.uniform1f(uniform('zoom'), zoom);
    gl.uniform1f(uniform('aspect'), solid.width / solid.height);
    bodies.forEach(({ array, count, colour }, i) => {
      if (!shown[i] || !count) return;
      gl.uniform3fv(uniform('colour'), colour);
      gl.bindVertexArray(array);
      gl.drawElements(gl.TRIANGLES, count, gl.UNSIGNED_INT, 0);
    });
  };
  solid.addEventListener('pointerdown', (event) => solid.setPointerCapture(event.pointerId));
  solid.addEventListener('pointermove', (event) => {
    if (!(event.buttons & 1)) return;
    const [a, b] = [-event.movementX / 120, -event.movementY / 120];
    const spin = [[Math.cos(a), 0, Math.sin(a)], [0, 1, 0], [-Math.sin(a), 0, Math.cos(a)]];
    const tilt = [[1, 0, 0], [0, Math.cos(b), -Math.sin(b)], [0, Math.sin(b), Math.cos(b)]];
    turned = times(times(tilt, spin), turned);
    paint();
  });
  solid.addEventListener('wheel', (event) => {
    event.preventDefault();
    zoom = Math.min(20, Math.max(0.2, zoom * Math.exp(-event.deltaY / 600)));
    paint();
  }, { passive: false });
  return paint;
}

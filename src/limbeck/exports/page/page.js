// Classifies images with the exported student. card.json says what it reads.
import * as ort from "./ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1; // more need headers that static servers do not send
const element = (id) => document.getElementById(id);
const MOST = 5; // classes that are shown

const card = await (await fetch("card.json")).json();
const [, height, width, channels] = card.reads.shape;
const session = await ort.InferenceSession.create("student.onnx");
const canvas = element("canvas");
[canvas.width, canvas.height] = [width, height];
canvas.style.setProperty("--ratio", width / height);
const drawing = canvas.getContext("2d", { willReadFrequently: true });

/** Bytes (height * width * channels) to the first output, such as logits. */
export async function run(bytes) {
  const input = new ort.Tensor("uint8", bytes, [1, height, width, channels]);
  const outputs = await session.run({ [card.reads.name]: input });
  return Array.from(outputs[card.outputs[0]].data);
}

/** The bytes of what is on the canvas; grey by the weights of ITU-R BT.601. */
function pixels() {
  const { data } = drawing.getImageData(0, 0, width, height);
  const bytes = new Uint8Array(height * width * channels);
  for (let at = 0; at < height * width; at++) {
    const [red, green, blue] = data.subarray(4 * at, 4 * at + 3);
    if (channels === 3) bytes.set([red, green, blue], 3 * at);
    else bytes[at] = Math.round(0.299 * red + 0.587 * green + 0.114 * blue);
  }
  return bytes;
}

/** Draw an image so that it covers the canvas, and show what the network says. */
async function classify(image, wide, high) {
  const factor = Math.max(width / wide, height / high);
  const [w, h] = [wide * factor, high * factor];
  drawing.clearRect(0, 0, width, height);
  drawing.imageSmoothingQuality = "high";
  drawing.drawImage(image, (width - w) / 2, (height - h) / 2, w, h);
  const bytes = pixels();
  const began = performance.now();
  const logits = await run(bytes);
  element("time").textContent = `${(performance.now() - began).toFixed(1)} ms`;
  show(logits);
}

function show(logits) {
  const temperature = card.temperature ?? 1;
  const most = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp((logit - most) / temperature));
  const sum = powers.reduce((one, two) => one + two);
  const order = powers.map((power, at) => [power / sum, card.classes[at]]).sort((one, two) => two[0] - one[0]);
  element("classes").replaceChildren(...order.slice(0, MOST).map(([share, name]) => {
    const [row, label, meter, text] = ["li", "span", "meter", "span"].map((tag) => document.createElement(tag));
    label.textContent = name;
    meter.value = share;
    meter.setAttribute("aria-label", name);
    text.textContent = `${(100 * share).toFixed(1)} %`;
    row.append(label, meter, text);
    return row;
  }));
}

async function read(file) {
  if (!file) return;
  const image = await createImageBitmap(file).catch(() => null);
  if (!image) {
    element("time").textContent = `${file.name} is not an image that this browser reads.`;
    return;
  }
  await classify(image, image.width, image.height).catch((error) => {
    element("time").textContent = `The network cannot be run: ${error.message}`;
  });
}

const video = element("video");
async function follow() {
  if (!video.srcObject) return;
  if (video.videoWidth) await classify(video, video.videoWidth, video.videoHeight);
  requestAnimationFrame(follow);
}

element("file").addEventListener("change", (event) => read(event.target.files[0]));
element("camera").addEventListener("click", async () => {
  if (video.srcObject) {
    video.srcObject.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    element("camera").textContent = "Use the camera";
    return;
  }
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    await video.play();
    element("camera").textContent = "Stop the camera";
    follow();
  } catch {
    element("time").textContent = "The camera cannot be used: it needs your permission, and https or this machine.";
  }
});
const drop = element("drop");
for (const kind of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") read(event.dataTransfer.files[0]);
  });
}

element("about").textContent = `${card.network}: ${card.classes.length} classes, images of ${width} × ${height} pixels`;
navigator.serviceWorker?.register("worker.js");
document.body.dataset.ready = "yes";

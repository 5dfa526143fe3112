// Keeps the files of the page, so that it works without a network.
const FILES = [
  "./", "page.js", "card.json", "student.onnx",
  "ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm",
];

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open("page").then((kept) => kept.addAll(FILES)).then(() => self.skipWaiting()));
});
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
// From the network if there is one, so that a new export is seen; else as kept.
self.addEventListener("fetch", (event) => {
  event.respondWith(
    fetch(event.request)
      .then(async (answer) => {
        const kept = await caches.open("page");
        if (answer.ok) await kept.put(event.request, answer.clone());
        return answer;
      })
      .catch(() => caches.match(event.request, { ignoreSearch: true })),
  );
});

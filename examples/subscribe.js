// Print each utterance's label as it comes.   npm install zeromq@6 && node subscribe.js [ENDPOINT [KEY_FILE]]
const { readFileSync } = require("fs");
const { Subscriber } = require("zeromq"); // version 6

function readKeys(file) { // of stream-keys new client
  const found = readFileSync(file, "utf8").matchAll(/(\w+)-key = "(.{40})"/g);
  const keys = Object.fromEntries([...found].map(([, name, key]) => [name, key]));
  return { curvePublicKey: keys.public, curveSecretKey: keys.secret, curveServerKey: keys.server };
}

async function main([endpoint = "tcp://127.0.0.1:5556", keyFile]) {
  const socket = new Subscriber(keyFile ? readKeys(keyFile) : {});
  socket.connect(endpoint);
  socket.subscribe("emotion.utterance."); // a prefix: every stream; "emotion.window." has the running estimates
  for await (const [topic, body] of socket) {
    const u = JSON.parse(body.toString());
    console.log(u.start_s.toFixed(2), u.end_s.toFixed(2), u.label, u.confidence.toFixed(2), u.text);
  }
}

main(process.argv.slice(2));

// Print each utterance's label as it comes.   npm install zeromq && node subscribe.js
const { Subscriber } = require("zeromq"); // version 6

async function main() {
  const socket = new Subscriber();
  socket.connect("tcp://127.0.0.1:5556");
  socket.subscribe("emotion.utterance."); // a prefix: every stream; "emotion.window." has the running estimates
  for await (const [topic, body] of socket) {
    const u = JSON.parse(body.toString());
    console.log(u.start_s.toFixed(2), u.end_s.toFixed(2), u.label, u.confidence.toFixed(2), u.text);
  }
}

main();

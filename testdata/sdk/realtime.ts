// Calls that are sessions: of the Realtime API with the classes for Node.js and for browsers and with the agents SDK, and
// of Ultravox. Where Node.js has no WebSocket of its own, the class for browsers gets that of ws.
import { RealtimeAgent, RealtimeSession, tool } from "@openai/agents/realtime";
import { OpenAIRealtimeWebSocket } from "openai/realtime/websocket";
import { OpenAIRealtimeWS } from "openai/realtime/ws";
import type { RealtimeClientEvent } from "openai/resources/realtime/realtime";
import { WebSocket } from "ws";
import { converse, Talk } from "./realtime-talk.js";
import { type Call, openai, question, run } from "./run.js";

const ws = (call: Call) => new OpenAIRealtimeWS({ model: call.model }, openai(call));
const native = (call: Call) => new OpenAIRealtimeWebSocket({ model: call.model }, openai(call));
const socketURL = (call: Call) => `${call.baseURL.replace("http", "ws")}/v1/realtime?model=${call.model}`;

globalThis.WebSocket ??= WebSocket as unknown as typeof globalThis.WebSocket;

async function stay(call: Call, event: RealtimeClientEvent) {
  const talk = new Talk(ws(call));
  await talk.until("session.created");
  talk.client.send(event);
  return [await talk.ended, talk.failures];
}

run({
  ws: (call) => converse(ws(call)),
  native: (call) => converse(native(call)),

  // Opens a session that is refused.
  wsRefused: async (call) => {
    const talk = new Talk(ws(call));
    return [await talk.ended, talk.failures];
  },
  nativeRefused: (call) => new Promise((resolve) => {
    native(call).on("error", (error) => resolve(error.message.split("\n")[0]));
  }),

  // Begins a response, or clears what the user has said, and stays until the end of the session.
  wsStays: (call) => stay(call, { type: "response.create" }),
  wsIdles: (call) => stay(call, { type: "input_audio_buffer.clear" }),

  agents: async (call) => {
    const called: unknown[] = [];
    const weather = tool({
      name: "weather", description: "says how the weather is", strict: false,
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: true },
      execute: async (input) => {
        called.push(input);
        return "sunny";
      },
    });
    const agent = new RealtimeAgent({ name: "helper", instructions: "Be brief.", tools: [weather] });
    const session = new RealtimeSession(agent, { transport: "websocket", model: call.model });
    const errors: unknown[] = [];
    let sound = 0;
    session.on("error", (error) => errors.push(error));
    session.on("audio", ({ data }) => (sound += data.byteLength));
    await session.connect({ apiKey: call.key, url: socketURL(call) });

    const answered = new Promise((resolve) => session.on("agent_end", (_context, _agent, text) => text && resolve(text)));
    session.sendMessage(question);
    const text = await answered;

    const interrupted = new Promise((resolve) => {
      session.on("transport_event", (event) => event.type === "response.done" && resolve(event.response.status));
    });
    session.once("audio", () => session.interrupt());
    session.sendMessage(question);
    const result = { text, called, interrupted: await interrupted, sound: sound > 0, tokens: session.usage.totalTokens, errors };
    session.close();
    return result;
  },

  // Says what is in the answer to the handshake of a browser.
  handshake: (call) => new Promise((resolve, reject) => {
    const socket = new WebSocket(socketURL(call), ["realtime", `openai-insecure-api-key.${call.key}`]);
    socket.on("error", reject);
    socket.on("upgrade", ({ rawHeaders }) => {
      const names = rawHeaders.filter((_, i) => i % 2 === 0).map((name) => name.toLowerCase()).sort();
      const hasKey = rawHeaders.join().includes(call.key);
      socket.on("message", () => socket.close());
      socket.on("close", () => resolve({ protocol: socket.protocol, extensions: socket.extensions, names, hasKey }));
    });
  }),

  // Talks to Ultravox until it hangs up.
  ultravox: (call) => new Promise((resolve, reject) => {
    const socket = new WebSocket(socketURL(call), { headers: { Authorization: `Bearer ${call.key}` } });
    const got: string[] = [];
    let sound = 0;
    socket.on("error", reject);
    socket.on("close", (code) => resolve({ got, sound, code }));
    socket.on("message", (data: Buffer, isBinary) => {
      if (isBinary) {
        if ((sound += data.length) === 6400) setTimeout(() => socket.send(`{"type":"hang_up"}`), Number(call.prompt));
        return;
      }
      const { type, text, state } = JSON.parse(data.toString());
      got.push(text ?? state ?? type);
      if (type === "call_started") socket.send(`{"type":"user_text_message","text":"How?"}`);
      if (text === "word") for (let i = 0; i < 10; i++) socket.send(Buffer.alloc(640));
    });
  }),
});

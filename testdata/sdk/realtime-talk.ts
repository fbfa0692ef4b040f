// A conversation over any of the classes that the SDK has for the Realtime API; it also runs in a browser. What it says
// beside the events' members, in metadata, tells the stand-in for the provider how to respond.
import type { OpenAIRealtimeEmitter } from "openai/realtime/internal-base";
import type { RealtimeClientEvent, RealtimeServerEvent } from "openai/resources/realtime/realtime";

export interface Client extends OpenAIRealtimeEmitter {
  socket: unknown;
  send(event: RealtimeClientEvent): void;
  close(props?: { code: number; reason: string }): void;
}

type Of<Type> = Extract<RealtimeServerEvent, { type: Type }>;

// A Talk reads the events of a session in their order.
export class Talk {
  readonly ended: Promise<string>; // code and reason of its end
  readonly failures: string[] = [];
  private readonly events: RealtimeServerEvent[] = [];
  private wake = () => {};
  private isOver = false;

  constructor(readonly client: Client) {
    client.on("event", (event) => {
      this.events.push(event);
      this.wake();
    });
    client.on("error", (error) => {
      this.failures.push(error.error?.code ?? error.message.split("\n")[0]);
    });
    const socket = client.socket as WebSocket;
    this.ended = new Promise((resolve) => {
      socket.addEventListener("close", ({ code, reason }) => {
        this.isOver = true;
        this.wake();
        resolve(`${code} ${reason}`.trim());
      });
    });
  }

  // until waits for an event of a type, and returns it; others are passed over.
  async until<Type extends RealtimeServerEvent["type"]>(type: Type): Promise<Of<Type>> {
    for (;;) {
      const event = this.events.shift();
      if (event?.type === type) return event as Of<Type>;
      if (event) continue;
      if (this.isOver) throw new Error(`no ${type}; ended with ${await this.ended}; ${this.failures}`);
      await new Promise<void>((resolve) => (this.wake = resolve));
    }
  }

  create(step: string, beside = false) {
    const response = { metadata: { step }, ...(beside && { conversation: "none" as const }) };
    this.client.send({ type: "response.create", response });
  }

  // done waits for the end of a response, and returns what came of it.
  async done() {
    const { response } = await this.until("response.done");
    const { status, status_details, usage, output } = response;
    return { status, reason: status_details?.reason, tokens: usage?.total_tokens, output: output?.map((item) => item.type).join() };
  }
}

export async function converse(client: Client) {
  const talk = new Talk(client);
  const { session } = await talk.until("session.created");
  client.send({
    type: "session.update",
    session: { type: "realtime", instructions: "Be brief.", max_output_tokens: 200, tools: [{ type: "function", name: "weather" }] },
  });
  for (let updated = ""; updated !== "Be brief."; ) {
    const { session } = await talk.until("session.updated");
    updated = ("instructions" in session && session.instructions) || "";
  }
  const results: unknown[] = ["model" in session && session.model];

  for (let i = 0; i < 3; i++) client.send({ type: "input_audio_buffer.append", audio: "A".repeat(6400) });
  const { transcript } = await talk.until("conversation.item.input_audio_transcription.completed");
  results.push(transcript, await talk.done()); // nobody has asked for the response

  talk.create("text");
  results.push((await talk.until("response.output_text.delta")).delta, await talk.done());
  talk.create("call");
  const { call_id, arguments: json } = await talk.until("response.function_call_arguments.done");
  results.push(JSON.parse(json), await talk.done());
  client.send({ type: "conversation.item.create", item: { type: "function_call_output", call_id, output: "sunny" } });
  talk.create("large");
  results.push((await talk.until("response.output_audio.delta")).delta.length, await talk.done());
  talk.create("limited");
  results.push(await talk.done());
  talk.create("failed");
  results.push(await talk.done());

  talk.create("hang");
  await talk.until("response.output_audio.delta");
  talk.create("text");
  await talk.until("error");
  talk.create("text", true);
  results.push(await talk.done());
  client.send({ type: "response.cancel" });
  results.push(await talk.done());

  client.send({ type: "input_audio_buffer.append", audio: "A".repeat(12 << 20) });
  client.close({ code: 1000, reason: "bye" });
  results.push(talk.failures, await talk.ended);
  return results;
}

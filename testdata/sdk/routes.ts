// Calls of OpenAI's routes other than chat, with the official SDK. Most return the usage that the response reports.
import { toFile } from "openai";
import { type Call, openai, question, run, silence } from "./run.js";

const parameters = { type: "object" as const, properties: { city: { type: "string" as const } }, required: ["city"] };
const tools = [{ type: "function" as const, name: "weather", parameters, strict: false }];

function response(call: Call) {
  return { model: call.model, input: call.prompt ?? question, max_output_tokens: call.maxTokens ?? 50 };
}

async function recording() {
  return toFile(silence(), "silence.wav");
}

// What comes of a request whose response is not read yet, and what it was charged.
async function charged(request: { withResponse(): Promise<{ data: any; response: Response }> }) {
  const { data, response } = await request.withResponse();
  return { data, charged: response.headers.get("x-tokens-charged") };
}

async function sse(response: Response) {
  const events = (await response.text()).split("\n\n").filter((event) => event.startsWith("data: "));
  return events.map((event) => JSON.parse(event.slice(6)));
}

await run({
  async response(call) {
    const { data, charged: tokens } = await charged(openai(call).responses.create(response(call)));
    return { content: data.output_text, status: data.status, usage: data.usage.total_tokens, charged: tokens };
  },

  async responseStream(call) {
    const stream = await openai(call).responses.create({ ...response(call), stream: true });
    let content = "";
    let usage = 0;
    const types = new Set<string>();
    for await (const event of stream) {
      types.add(event.type);
      if (event.type === "error") throw new Error(event.message); // which the SDK leaves to the program
      if (event.type === "response.output_text.delta") content += event.delta;
      if (event.type === "response.completed") usage += event.response.usage?.total_tokens ?? 0;
    }
    return { content, usage, types: types.size };
  },

  async responseStreamHelper(call) {
    const final = await openai(call).responses.stream(response(call)).finalResponse();
    return { content: final.output_text, status: final.status, usage: final.usage?.total_tokens };
  },

  // Sends only the result of the tool to the second request, which continues the first.
  async responseTools(call) {
    const client = openai(call);
    const first = await client.responses.create({ ...response(call), tools });
    const [use] = first.output;
    if (use?.type !== "function_call") return first;
    const second = await client.responses.create({
      ...response(call),
      tools,
      previous_response_id: first.id,
      input: [{ type: "function_call_output", call_id: use.call_id, output: "sunny" }],
    });
    const usage = (first.usage?.total_tokens ?? 0) + (second.usage?.total_tokens ?? 0);
    return { tool: use.name, arguments: use.arguments, content: second.output_text, usage };
  },

  async responseToolsStream(call) {
    const final = await openai(call).responses.stream({ ...response(call), tools }).finalResponse();
    const [use] = final.output;
    return use?.type === "function_call" ? { tool: use.name, arguments: use.arguments } : final;
  },

  // A stream that is continued as soon as it ends, by its ID and by the ID of its item; then all is read and deleted.
  async responseState(call) {
    const client = openai(call);
    const first = await client.responses.stream(response(call)).finalResponse();
    const second = await client.responses.create({ ...response(call), previous_response_id: first.id });
    const { id } = first.output[0] as { id: string };
    const input = [{ type: "item_reference" as const, id }, { role: "user" as const, content: question }];
    const third = await client.responses.create({ ...response(call), input });
    const read = await client.responses.retrieve(second.id);
    const items = [];
    for await (const item of client.responses.inputItems.list(second.id)) items.push(item.type);
    await client.responses.delete(second.id);
    const gone = await client.responses.retrieve(second.id).catch((error) => [error.constructor.name, error.code]);
    const usage = [first, second, third].map((each) => each.usage?.total_tokens);
    return { content: read.output_text, items, gone, usage };
  },

  async responseCompact(call) {
    const { model, input } = response(call);
    const compacted = await openai(call).responses.compact({ model, input });
    return { types: compacted.output.map((item) => item.type), usage: compacted.usage.total_tokens };
  },

  async responseCount(call) {
    const { model, input } = response(call);
    return (await openai(call).responses.inputTokens.count({ model, input })).input_tokens;
  },

  // The SDK asks for base64 by itself and decodes it.
  async embedding(call) {
    const request = openai(call).embeddings.create({ model: call.model, input: [question, question] });
    const { data, charged: tokens } = await charged(request);
    return { vectors: data.data.map((each: any) => each.embedding), usage: data.usage.total_tokens, charged: tokens };
  },

  async embeddingFloat(call) {
    const { data, usage } = await openai(call).embeddings.create({
      model: call.model,
      input: [1, 2, 3],
      dimensions: 6,
      encoding_format: "float",
    });
    return { vectors: data.map((each) => each.embedding), usage: usage.total_tokens };
  },

  async moderation(call) {
    const { data, charged: tokens } = await charged(openai(call).moderations.create({ model: call.model, input: question }));
    return { flagged: data.results[0].flagged, charged: tokens };
  },

  async image(call) {
    const { data, usage } = await openai(call).images.generate({ model: call.model, prompt: question, n: 2 });
    return { images: data?.map((image) => image.b64_json), usage: usage?.total_tokens };
  },

  async imageStream(call) {
    const stream = await openai(call).images.generate({
      model: call.model,
      prompt: question,
      stream: true,
      partial_images: 2,
    });
    const types = [];
    let usage = 0;
    for await (const event of stream) {
      types.push(event.type);
      if (event.type === "image_generation.completed") usage += event.usage.total_tokens;
    }
    return { types, usage };
  },

  async transcription(call) {
    const { data, charged: tokens } = await charged(
      openai(call).audio.transcriptions.create({ file: await recording(), model: call.model }),
    );
    return { text: data.text, usage: data.usage.total_tokens ?? data.usage.seconds, charged: tokens };
  },

  async transcriptionText(call) {
    return openai(call).audio.transcriptions.create({
      file: await recording(),
      model: call.model,
      response_format: "text",
    });
  },

  async transcriptionSubtitles(call) {
    const body = { file: await recording(), model: call.model, response_format: "srt" as const };
    return openai(call).audio.transcriptions.create(body);
  },

  async transcriptionVerbose(call) {
    const { text, duration } = await openai(call).audio.transcriptions.create({
      file: await recording(),
      model: call.model,
      response_format: "verbose_json",
      timestamp_granularities: ["segment"],
    });
    return { text, duration };
  },

  async transcriptionStream(call) {
    const stream = await openai(call).audio.transcriptions.create({
      file: await recording(),
      model: call.model,
      stream: true,
    });
    let text = "";
    for await (const event of stream) {
      if (event.type === "transcript.text.delta") text += event.delta;
      if (event.type === "transcript.text.done") return { text, usage: event.usage?.type === "tokens" && event.usage.total_tokens };
    }
    return "the stream ended";
  },

  async translation(call) {
    return (await openai(call).audio.translations.create({ file: await recording(), model: call.model })).text;
  },

  async speech(call) {
    const body = { model: call.model, voice: "alloy", input: "Wie ist das Wetter in Zürich? ☀️🌧" };
    const sound = await openai(call).audio.speech.create(body);
    return { type: sound.headers.get("content-type"), bytes: Buffer.from(await sound.arrayBuffer()).toString("hex") };
  },

  async speechStream(call) {
    const body = { model: call.model, voice: "alloy", input: "☀️🌧", stream_format: "sse" as const };
    const events = await sse(await openai(call).audio.speech.create(body));
    return { types: events.map((event) => event.type), usage: events.at(-1).usage.total_tokens };
  },
});

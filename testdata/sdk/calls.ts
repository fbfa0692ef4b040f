// Calls with the official SDKs.
import Anthropic from "@anthropic-ai/sdk";
import { betaTool } from "@anthropic-ai/sdk/helpers/beta/json-schema";
import { type Call, openai, question, run } from "./run.js";

const properties = { city: { type: "string" as const } };
const parameters = { type: "object" as const, properties, required: ["city"] };

function chat(call: Call) {
  return {
    model: call.model,
    messages: [{ role: "user" as const, content: call.prompt ?? question }],
    max_completion_tokens: call.maxTokens ?? 50,
  };
}

const chatTools = [{ type: "function" as const, function: { name: "weather", parameters } }];

function anthropic(call: Call) {
  return new Anthropic({ baseURL: call.baseURL, apiKey: call.key, maxRetries: call.retries ?? 0 });
}

function message(call: Call) {
  return {
    model: call.model,
    messages: [{ role: "user" as const, content: call.prompt ?? question }],
    max_tokens: call.maxTokens ?? 50,
  };
}

const messageTools = [{ name: "weather", input_schema: parameters }];

await run({
  async chat(call) {
    const { data, response } = await openai(call).chat.completions.create(chat(call)).withResponse();
    return {
      content: data.choices[0].message.content,
      reason: data.choices[0].finish_reason,
      usage: data.usage?.total_tokens,
      charged: response.headers.get("x-tokens-charged"),
      left: response.headers.get("x-tokens-left"),
    };
  },

  async chatStream(call) {
    const stream = await openai(call).chat.completions.create({ ...chat(call), stream: true });
    let content = "";
    let usage = 0;
    for await (const chunk of stream) {
      content += chunk.choices[0].delta.content ?? ""; // as many programs do: every chunk has a choice
      usage += chunk.usage?.total_tokens ?? 0;
    }
    return { content, usage };
  },

  async chatStreamUsage(call) {
    const stream = await openai(call).chat.completions.create({
      ...chat(call),
      stream: true,
      stream_options: { include_usage: true },
    });
    let content = "";
    let usage = 0;
    for await (const chunk of stream) {
      content += chunk.choices[0]?.delta.content ?? "";
      usage += chunk.usage?.total_tokens ?? 0;
    }
    return { content, usage };
  },

  async chatStreamHelper(call) {
    const completion = await openai(call).chat.completions.stream(chat(call)).finalChatCompletion();
    return { content: completion.choices[0].message.content, reason: completion.choices[0].finish_reason };
  },

  // Leaves the loop as soon as the model has finished, before the usage and [DONE].
  async chatStreamBreak(call) {
    const stream = await openai(call).chat.completions.create({ ...chat(call), stream: true });
    for await (const chunk of stream) {
      if (chunk.choices[0].finish_reason) return { reason: chunk.choices[0].finish_reason };
    }
    return "the stream ended";
  },

  // Has the request cancelled in the middle of the response.
  async chatStreamAbort(call) {
    const stream = await openai(call).chat.completions.create({ ...chat(call), stream: true });
    for await (const chunk of stream) {
      if (chunk.choices[0].delta.content) stream.controller.abort();
    }
    return "the loop ended";
  },

  async chatImage(call) {
    const url = "data:image/png;base64," + "A".repeat(8000);
    const completion = await openai(call).chat.completions.create({
      model: call.model,
      n: 2,
      max_completion_tokens: 5,
      messages: [{ role: "user", content: [{ type: "text", text: question }, { type: "image_url", image_url: { url } }] }],
    });
    return completion.choices.map((choice) => choice.finish_reason);
  },

  // Sends no limit.
  async chatPlain(call) {
    const { model, messages } = chat(call);
    return (await openai(call).chat.completions.create({ model, messages })).choices[0].finish_reason;
  },

  async chatTools(call) {
    const client = openai(call);
    const first = await client.chat.completions.create({ ...chat(call), tools: chatTools });
    const [toolCall] = first.choices[0].message.tool_calls ?? [];
    if (toolCall?.type !== "function") return first;
    const second = await client.chat.completions.create({
      ...chat(call),
      tools: chatTools,
      messages: [
        ...chat(call).messages,
        first.choices[0].message,
        { role: "tool", tool_call_id: toolCall.id, content: "sunny" },
      ],
    });
    return {
      tool: toolCall.function.name,
      arguments: toolCall.function.arguments,
      reason: first.choices[0].finish_reason,
      content: second.choices[0].message.content,
    };
  },

  async chatToolsStream(call) {
    const stream = openai(call).chat.completions.stream({ ...chat(call), tools: chatTools });
    const completion = await stream.finalChatCompletion();
    const [toolCall] = completion.choices[0].message.tool_calls ?? [];
    if (toolCall?.type !== "function") return completion;
    return { tool: toolCall.function.name, arguments: toolCall.function.arguments };
  },

  async models(call) {
    return (await openai(call).models.list()).data.map((model) => model.id);
  },

  async model(call) {
    return (await openai(call).models.retrieve(call.model)).id;
  },

  async responses(call) {
    return openai(call).responses.create({ model: call.model, input: question });
  },

  async message(call) {
    const { data, response } = await anthropic(call).messages.create(message(call)).withResponse();
    return {
      content: data.content,
      reason: data.stop_reason,
      output: data.usage.output_tokens,
      charged: response.headers.get("x-tokens-charged"),
      left: response.headers.get("x-tokens-left"),
    };
  },

  async messageEvents(call) {
    const stream = await anthropic(call).messages.create({ ...message(call), stream: true });
    const types = new Set<string>();
    for await (const event of stream) types.add(event.type);
    return [...types];
  },

  async messageStream(call) {
    const data = await anthropic(call).messages.stream(message(call)).finalMessage();
    return { content: data.content, reason: data.stop_reason, output: data.usage.output_tokens };
  },

  async messageStreamAbort(call) {
    const stream = anthropic(call).messages.stream(message(call));
    stream.on("text", () => stream.abort());
    return (await stream.finalMessage()).stop_reason;
  },

  // As Claude Code does: one credential is tollgate's, the other is not.
  async messageTwoCredentials(call) {
    const client = anthropic({ ...call, key: "sk-ant-of-the-user" });
    const options = { headers: { Authorization: `Bearer ${call.key}` } };
    return (await client.messages.create(message(call), options)).stop_reason;
  },

  // Beta calls add ?beta=true and a header to the request.
  async messageBeta(call) {
    const data = await anthropic(call).beta.messages.create({ ...message(call), betas: ["some-beta"] });
    return { reason: data.stop_reason };
  },

  async messageTools(call) {
    const client = anthropic(call);
    const first = await client.messages.create({ ...message(call), tools: messageTools });
    const [use] = first.content;
    if (use?.type !== "tool_use") return first;
    const second = await client.messages.create({
      ...message(call),
      tools: messageTools,
      messages: [
        ...message(call).messages,
        { role: "assistant", content: first.content },
        { role: "user", content: [{ type: "tool_result", tool_use_id: use.id, content: "sunny" }] },
      ],
    });
    return { tool: use.name, input: use.input, reason: first.stop_reason, content: second.content };
  },

  async messageToolsStream(call) {
    const data = await anthropic(call).messages.stream({ ...message(call), tools: messageTools }).finalMessage();
    const [use] = data.content;
    return use?.type === "tool_use" ? { tool: use.name, input: use.input } : data;
  },

  // Runs over a thread that the provider holds, until it is told that there are none.
  async messageToolRunner(call) {
    const statuses: number[] = [];
    const client = anthropic(call).withOptions({
      fetch: async (...request) => {
        const response = await fetch(...request);
        statuses.push(response.status);
        return response;
      },
    });
    const weather = betaTool({
      name: "weather",
      description: "says how the weather is",
      inputSchema: { type: "object", properties, required: ["city"] },
      run: ({ city }) => `sunny in ${city}`,
    });
    const last = await client.beta.messages.toolRunner({ ...message(call), tools: [weather] });
    return { statuses, content: last.content };
  },

  async countTokens(call) {
    const { model, messages } = message(call);
    return (await anthropic(call).messages.countTokens({ model, messages })).input_tokens;
  },

  async messageModels(call) {
    return (await anthropic(call).models.list()).data.map((model) => model.id);
  },

  async messageModel(call) {
    return (await anthropic(call).models.retrieve(call.model)).id;
  },
});

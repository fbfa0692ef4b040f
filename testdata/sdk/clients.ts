// Calls with other clients than the official SDKs. Each returns the text that the model generated and the usage that the
// client reports.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { Agent, OpenAIProvider, Runner, tool as agentTool } from "@openai/agents";
import {
  embed,
  experimental_generateSpeech as generateSpeech,
  experimental_transcribe as transcribe,
  generateImage,
  generateText,
  jsonSchema,
  type LanguageModel,
  stepCountIs,
  streamText,
  tool,
} from "ai";
import { type Call, question, run, silence } from "./run.js";

const parameters = { type: "object" as const, properties: { city: { type: "string" as const } }, required: ["city"] };
const description = "says how the weather is";

function compatible(call: Call) {
  return createOpenAICompatible({ name: "tollgate", baseURL: call.baseURL + "/v1", apiKey: call.key })(call.model);
}

function anthropic(call: Call) {
  return createAnthropic({ baseURL: call.baseURL + "/v1", apiKey: call.key })(call.model);
}

// Speaks Responses, unless it is told otherwise.
function openai(call: Call) {
  return createOpenAI({ baseURL: call.baseURL + "/v1", apiKey: call.key });
}

function settings(call: Call, model: LanguageModel) {
  return { model, prompt: question, maxOutputTokens: 50, maxRetries: call.retries ?? 0 };
}

async function generated(call: Call, model: LanguageModel) {
  const { text, usage } = await generateText(settings(call, model));
  return { content: text, usage: usage.totalTokens };
}

async function streamed(call: Call, model: LanguageModel) {
  const result = streamText(settings(call, model));
  let content = "";
  for await (const delta of result.textStream) content += delta;
  return { content, usage: (await result.totalUsage).totalTokens };
}

async function withTool(call: Call, model: LanguageModel) {
  const execute = async () => "sunny";
  const weather = tool({ description, inputSchema: jsonSchema<{ city: string }>(parameters), execute });
  const options = { tools: { weather }, stopWhen: stepCountIs(2) };
  const { text, totalUsage } = await generateText({ ...settings(call, model), ...options });
  return { content: text, usage: totalUsage.totalTokens };
}

function langchain(call: Call, useResponsesApi = false) {
  const configuration = { baseURL: call.baseURL + "/v1" };
  return new ChatOpenAI({ model: call.model, apiKey: call.key, configuration, maxTokens: 50, maxRetries: 0, useResponsesApi });
}

function langchainEmbeddings(call: Call) {
  const configuration = { baseURL: call.baseURL + "/v1" };
  return new OpenAIEmbeddings({ model: call.model, apiKey: call.key, configuration, maxRetries: 0 });
}

// Reports no traces, which would go to OpenAI.
function agent(call: Call) {
  const modelProvider = new OpenAIProvider({ baseURL: call.baseURL + "/v1", apiKey: call.key });
  const weather = agentTool({
    name: "weather",
    description,
    parameters: { ...parameters, additionalProperties: true },
    strict: false,
    execute: async () => "sunny",
  });
  const runner = new Runner({ modelProvider, tracingDisabled: true });
  return { runner, agent: new Agent({ name: "reporter", instructions: "Be short.", model: call.model, tools: [weather] }) };
}

await run({
  compatible: (call) => generated(call, compatible(call)),
  compatibleStream: (call) => streamed(call, compatible(call)),
  compatibleTools: (call) => withTool(call, compatible(call)),
  anthropic: (call) => generated(call, anthropic(call)),
  anthropicStream: (call) => streamed(call, anthropic(call)),
  anthropicTools: (call) => withTool(call, anthropic(call)),

  async langchain(call) {
    const message = await langchain(call).invoke(question);
    return { content: message.content, usage: message.usage_metadata?.total_tokens };
  },

  async langchainStream(call) {
    let content = "";
    let usage = 0;
    for await (const chunk of await langchain(call).stream(question)) {
      content += chunk.content;
      usage += chunk.usage_metadata?.total_tokens ?? 0;
    }
    return { content, usage };
  },

  async langchainTools(call) {
    const weather = { type: "function" as const, function: { name: "weather", description, parameters } };
    const message = await langchain(call).bindTools([weather]).invoke(question);
    return { tool: message.tool_calls?.[0], usage: message.usage_metadata?.total_tokens };
  },

  openai: (call) => generated(call, openai(call)(call.model)),
  openaiStream: (call) => streamed(call, openai(call)(call.model)),
  openaiTools: (call) => withTool(call, openai(call)(call.model)),

  // Refers to what the model said in the first response by its ID.
  async openaiTurns(call) {
    const model = openai(call)(call.model);
    const user = { role: "user" as const, content: question };
    const first = await generateText({ model, messages: [user], maxOutputTokens: 50, maxRetries: 0 });
    const messages = [user, ...first.response.messages, user];
    const second = await generateText({ model, messages, maxOutputTokens: 50, maxRetries: 0 });
    return { content: second.text, usage: [first.usage.totalTokens, second.usage.totalTokens] };
  },

  async openaiEmbed(call) {
    const model = openai(call).embedding(call.model);
    const { embedding, usage } = await embed({ model, value: question, maxRetries: 0 });
    return { embedding, usage: usage.tokens };
  },

  async openaiTranscribe(call) {
    const model = openai(call).transcription(call.model);
    const { text } = await transcribe({ model, audio: silence(), maxRetries: 0 });
    return text;
  },

  async openaiSpeech(call) {
    const { audio } = await generateSpeech({ model: openai(call).speech(call.model), text: question, maxRetries: 0 });
    return { type: audio.mediaType, bytes: audio.uint8Array.length };
  },

  async openaiImage(call) {
    const { images } = await generateImage({ model: openai(call).image(call.model), prompt: question, maxRetries: 0 });
    return images.map((image) => image.base64);
  },

  async agents(call) {
    const { runner, agent: reporter } = agent(call);
    const result = await runner.run(reporter, question);
    return { content: result.finalOutput, usage: result.state.usage.totalTokens };
  },

  async agentsStream(call) {
    const { runner, agent: reporter } = agent(call);
    const result = await runner.run(reporter, question, { stream: true });
    let content = "";
    for await (const delta of result.toTextStream()) content += delta;
    await result.completed;
    return { content, usage: result.state.usage.totalTokens };
  },

  async langchainResponses(call) {
    const message = await langchain(call, true).invoke(question);
    return { content: message.text, usage: message.usage_metadata?.total_tokens };
  },

  async langchainEmbedQuery(call) {
    return langchainEmbeddings(call).embedQuery(question);
  },

  async langchainEmbedDocuments(call) {
    return langchainEmbeddings(call).embedDocuments([question, question]);
  },
});

// Calls with other clients than the official SDKs. Each returns the text that the model generated and the usage that the
// client reports.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { ChatOpenAI } from "@langchain/openai";
import { generateText, jsonSchema, type LanguageModel, stepCountIs, streamText, tool } from "ai";
import { type Call, question, run } from "./run.js";

const parameters = { type: "object" as const, properties: { city: { type: "string" as const } }, required: ["city"] };
const description = "says how the weather is";

function compatible(call: Call) {
  return createOpenAICompatible({ name: "tollgate", baseURL: call.baseURL + "/v1", apiKey: call.key })(call.model);
}

function anthropic(call: Call) {
  return createAnthropic({ baseURL: call.baseURL + "/v1", apiKey: call.key })(call.model);
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

function langchain(call: Call) {
  const configuration = { baseURL: call.baseURL + "/v1" };
  return new ChatOpenAI({ model: call.model, apiKey: call.key, configuration, maxTokens: 50, maxRetries: 0 });
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
});

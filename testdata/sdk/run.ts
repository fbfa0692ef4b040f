// Reads a list of calls from stdin, makes them one after the other, and prints what each returned or threw as a line of
// JSON.
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";
import { text } from "node:stream/consumers";

export type Call = {
  name: string; // the part before the first space is its kind
  baseURL: string; // of the tenant, without /v1
  key: string;
  model: string;
  prompt?: string;
  maxTokens?: number;
  retries?: number;
};

export type Kinds = Record<string, (call: Call) => Promise<unknown>>;

export function openai(call: Call) {
  return new OpenAI({ baseURL: call.baseURL + "/v1", apiKey: call.key, maxRetries: call.retries ?? 0 });
}

export const question = "How is the weather in Zürich?";

// silence returns a recording of a second.
export function silence() {
  const header = "RIFF\x64\x1f\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x40\x1f\0\0\x01\0\x08\0data\x40\x1f\0\0";
  return Buffer.concat([Buffer.from(header, "latin1"), Buffer.alloc(8000, 128)]);
}

export async function run(kinds: Kinds) {
  for (const call of JSON.parse(await text(process.stdin)) as Call[]) {
    let result: unknown;
    try {
      result = { returned: await kinds[call.name.split(" ")[0]](call) };
    } catch (error) {
      if (error instanceof OpenAI.APIError) {
        const { status, code, type, message } = error;
        result = { threw: error.constructor.name, status, code, type, message, retryAfter: error.headers?.get("retry-after") };
      } else if (error instanceof Anthropic.APIError) {
        const { status, type, message } = error;
        result = { threw: error.constructor.name, status, type, message, retryAfter: error.headers?.get("retry-after") };
      } else {
        result = { threw: String(error) };
      }
    }
    console.log(JSON.stringify({ name: call.name, ...(result as object) }));
  }
}

// A back end that calls a model itself and charges its users through tollgate.
//
//   export TOLLGATE=http://localhost:8080/acme
//   export MODEL_URL=https://api.openai.com/v1/chat/completions MODEL=gpt-6-luna MODEL_KEY=sk-...
//   npx tsx own-backend.ts 3000
//
//   curl localhost:3000/ask -H "Authorization: Bearer $KEY" -d 'How are you?'
//   curl localhost:3000/count -H "Authorization: Bearer $KEY" -d 'one two three'
//
// It needs Node.js 18 or newer and nothing else; from 23.6 on, `node own-backend.ts` runs it as it is.

import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";

const { TOLLGATE, MODEL_URL, MODEL, MODEL_KEY = "" } = process.env;
if (!TOLLGATE || !MODEL_URL || !MODEL) throw new Error("TOLLGATE, MODEL_URL and MODEL must be set");

const maxText = 10_000; // characters
const maxOutput = 500; // tokens

type JSONObject = Record<string, any>;

// A response that is not 2xx, or none (status 0).
class Refused extends Error {
  status: number;
  body: string;
  retryAfter: string | null;

  constructor(status: number, body: string, retryAfter: string | null = null) {
    super(`${status} ${body}`);
    this.status = status;
    this.body = body;
    this.retryAfter = retryAfter;
  }
}

// Sends one request and returns the response's headers and JSON.
async function send(method: string, url: string, key: string, body?: JSONObject, headers: Record<string, string> = {}) {
  let response: Response, text: string;
  try {
    response = await fetch(url, {
      method,
      headers: { Authorization: `Bearer ${key}`, "Content-Type": "application/json", ...headers },
      body: body && JSON.stringify(body),
      signal: AbortSignal.timeout(60_000),
    });
    text = await response.text();
  } catch (error) {
    throw new Refused(0, JSON.stringify({ error: String(error) }));
  }
  if (!response.ok) throw new Refused(response.status, text, response.headers.get("Retry-After"));
  return { headers: response.headers, json: JSON.parse(text || "{}") as JSONObject };
}

// Calls tollgate. A request that got no response, or 503, is repeated: the Idempotency-Key makes that safe.
async function tollgate(key: string, method: string, path: string, body?: JSONObject) {
  const headers: Record<string, string> = method === "POST" ? { "Idempotency-Key": randomUUID() } : {};
  for (let attempt = 1; ; attempt++) {
    try {
      return await send(method, TOLLGATE + path, key, body, headers);
    } catch (error) {
      if (!(error instanceof Refused) || attempt === 3 || ![0, 503].includes(error.status)) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

// Has the model respond. The most that it can cost is held first, so a balance never runs out in between.
async function ask(key: string, question: string) {
  const user = await tollgate(key, "GET", "/auth/verify");
  const most = Buffer.byteLength(question) + 100 + maxOutput; // a token of text has at least a byte
  const hold = await tollgate(key, "POST", "/tokens/holds", { tokens: most, expiresIn: 300 });
  const path = `/tokens/holds/${hold.json.holdId}`;
  let reply: string, used: number;
  try {
    const completion = await send("POST", MODEL_URL!, MODEL_KEY, {
      model: MODEL,
      max_completion_tokens: maxOutput,
      messages: [{ role: "user", content: question }],
    });
    reply = completion.json.choices[0].message.content;
    used = completion.json.usage.total_tokens;
  } catch (error) {
    console.error("the model failed:", error);
    await tollgate(key, "DELETE", path);
    throw new Refused(502, '{"error":"The model does not respond"}');
  }
  const settled = await tollgate(key, "POST", `${path}/settle`, { tokens: used });
  return { reply, group: user.headers.get("X-User-Group"), ...settled.json };
}

// Does work whose cost is known only afterwards: a token for each word, or all that are left if those are fewer.
async function count(key: string, text: string) {
  await tollgate(key, "GET", "/auth/verify"); // 402 if nothing is left
  const words = text.split(/\s+/).filter(Boolean).length;
  const charge = await tollgate(key, "POST", "/tokens/consume", { tokens: Math.max(words, 1), upTo: true });
  return { words, ...charge.json };
}

const work: Record<string, (key: string, text: string) => Promise<JSONObject>> = { "POST /ask": ask, "POST /count": count };

const server = createServer(async (request, response) => {
  response.setHeader("Content-Type", "application/json");
  try {
    const key = /^Bearer ([!-~]+)$/i.exec(request.headers.authorization ?? "")?.[1] ?? "";
    const perform = work[`${request.method} ${request.url}`];
    if (!perform) throw new Refused(404, '{"error":"Not found"}');
    let text = "";
    for await (const chunk of request.setEncoding("utf8")) {
      text += chunk;
      if (text.length > maxText) throw new Refused(413, '{"error":"Body too large"}');
    }
    response.end(JSON.stringify(await perform(key, text)));
  } catch (error) {
    if (!(error instanceof Refused)) console.error(error);
    const { status, body, retryAfter } = error instanceof Refused ? error : new Refused(500, '{"error":"Internal error"}');
    if (retryAfter) response.setHeader("Retry-After", retryAfter);
    response.writeHead(status || 503).end(body); // 401, 402, 403 and 429 of tollgate are for the user
  }
});
server.listen(Number(process.argv[2]), "127.0.0.1", () => {
  console.log(`listening on ${(server.address() as AddressInfo).port}`);
});

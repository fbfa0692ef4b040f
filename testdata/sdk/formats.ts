// The types of the requests of each format, whose members types.mjs prints. The names are those of tollgate's formats.
// openai7 is the newest SDK of OpenAI; calls.ts needs one that runs on Node.js 20.
import type Anthropic from "@anthropic-ai/sdk";
import type OpenAI from "openai7";

export type Formats = {
  chat: OpenAI.ChatCompletionCreateParams;
  responses:
    | OpenAI.Responses.ResponseCreateParams
    | OpenAI.Responses.ResponseCompactParams
    | OpenAI.Responses.InputTokenCountParams;
  messages: Anthropic.MessageCreateParams | Anthropic.Beta.MessageCreateParams;
  embeddings: OpenAI.EmbeddingCreateParams;
  moderations: OpenAI.ModerationCreateParams;
  images: OpenAI.ImageGenerateParams;
  speech: OpenAI.Audio.SpeechCreateParams;
  transcriptions: OpenAI.Audio.TranscriptionCreateParams;
  translations: OpenAI.Audio.TranslationCreateParams;
};

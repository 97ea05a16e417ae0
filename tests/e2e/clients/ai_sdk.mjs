// Vercel's AI SDK with its provider for OpenAI-compatible servers. Prints what came of each check, as check.py does.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const { MODEL, EMBED_MODEL, OPENAI_BASE_URL, OPENAI_API_KEY } = process.env;
const provider = createOpenAICompatible({
  name: "torpor",
  baseURL: OPENAI_BASE_URL,
  apiKey: OPENAI_API_KEY,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const common = { model: provider(MODEL), temperature: 0, maxOutputTokens: 60, maxRetries: 0 };
const prompt = "What is the weather in Rome?";
const city = z.object({ name: z.string().max(30), inhabitants: z.number().int().min(0).max(50_000_000) });
const weather = tool({
  description: "Get the weather of a city",
  inputSchema: z.object({ city: z.string().max(20) }),
  execute: async ({ city }) => `18 degrees in ${city}`,
});

const failing = (error) => { throw error.error ?? error; };

const checks = {
  async chat() {
    const { text, usage } = await generateText({ ...common, prompt });
    assert(text.length > 0 && usage.outputTokens > 0);
  },
  async stream() {
    const result = streamText({ ...common, prompt, onError: failing });
    let chunks = 0;
    for await (const part of result.textStream) chunks += part.length > 0;
    assert(chunks > 1);
    assert((await result.usage).outputTokens > 0);
  },
  async tools() {
    const tools = { weather };
    // The first step has to call; the second is free to answer.
    const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "auto" });
    const plain = await generateText({ ...common, prompt, tools, prepareStep, stopWhen: stepCountIs(2) });
    assert.equal(typeof plain.steps[0].toolCalls[0].input.city, "string");
    assert.equal(plain.steps.length, 2);
    const result = streamText({ ...common, prompt, tools, toolChoice: { type: "tool", toolName: "weather" }, onError: failing });
    await result.consumeStream();
    assert.equal(typeof (await result.toolCalls)[0].input.city, "string");
  },
  async structured_output() {
    const output = Output.object({ schema: city });
    const plain = await generateText({ ...common, prompt: "Describe Rome.", output });
    city.parse(plain.output);
    const result = streamText({ ...common, prompt: "Describe Rome.", output, onError: failing });
    let last;
    for await (const part of result.partialOutputStream) last = part;
    city.parse(last);
  },
  async embeddings() {
    const { embeddings } = await embedMany({ model: provider.textEmbeddingModel(EMBED_MODEL), values: ["a", "b c"] });
    assert.deepEqual(embeddings.map((vector) => vector.length), [384, 384]);
  },
};

const { version } = JSON.parse(readFileSync("node_modules/@ai-sdk/openai-compatible/package.json", "utf8"));
const outcomes = { version };
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    outcomes[name] = "ok";
  } catch (error) {
    outcomes[name] = `${error.name}: ${error.message}`.split("\n")[0].slice(0, 200);
  }
}
console.log(JSON.stringify(outcomes));

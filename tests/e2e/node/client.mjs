// The official Node client against a gateway: prints one JSON object with what it saw.
// Reads OPENAI_BASE_URL, OPENAI_API_KEY, MODEL and EMBED_MODEL from the environment.
import OpenAI from "openai";

const { MODEL: model, EMBED_MODEL: embedModel } = process.env;
const client = new OpenAI({ maxRetries: 0, timeout: 180_000 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const seen = {};

seen.models = [];
for await (const item of client.models.list()) seen.models.push(item.id);

const plain = await client.chat.completions.create({ model, messages, temperature: 0 });
seen.plain = plain.choices[0].message.content;
seen.plainUsage = plain.usage;

const stream = await client.chat.completions.create({
  model,
  messages,
  temperature: 0,
  stream: true,
  stream_options: { include_usage: true },
});
seen.streamed = "";
for await (const chunk of stream) {
  seen.streamed += chunk.choices[0]?.delta?.content ?? "";
  if (chunk.usage) seen.streamedUsage = chunk.usage;
}

const embedding = await client.embeddings.create({ model: embedModel, input: "a cat" });
seen.dimensions = embedding.data[0].embedding.length;

try {
  await client.chat.completions.create({ model: "nobody-has-this", messages });
} catch (error) {
  seen.error = { name: error.constructor.name, status: error.status, code: error.code };
}

const aborted = await client.chat.completions.create({ model, messages, max_tokens: 2000, stream: true });
let chunks = 0;
for await (const _ of aborted) {
  chunks += 1;
  if (chunks === 3) break; // breaking out of the loop aborts the request
}
seen.chunksBeforeAbort = chunks;

console.log(JSON.stringify(seen));

// Loads a folder with transformers.js and prints, as JSON, ids of texts, logits of the first text, and a continuation.
//
//     node transformers_js.mjs NODE_MODULES FOLDER < {"texts": [...], "ids": [...], "count": 8, "options": {...}}
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, basename, resolve, join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [modules, folder] = process.argv.slice(2).map((p) => resolve(p));
const wanted = JSON.parse(readFileSync(0, 'utf8'));
const entry = createRequire(join(modules, 'x.js')).resolve('@huggingface/transformers');
const library = (await import(pathToFileURL(entry).href)).default;
const { AutoTokenizer, AutoModelForCausalLM, Tensor, env } = library;

env.allowRemoteModels = false;
env.localModelPath = dirname(folder);
const name = basename(folder);
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name, { device: 'cpu', ...wanted.options });
const matrix = (rows) => new Tensor('int64', BigInt64Array.from(rows.flat().map(BigInt)), [rows.length, rows[0].length]);
const input_ids = matrix(wanted.ids);
const attention_mask = matrix(wanted.mask ?? wanted.ids.map((row) => row.map(() => 1)));
const { logits } = await model({ input_ids, attention_mask });
const made = await model.generate({
    inputs: input_ids, attention_mask, do_sample: false, max_new_tokens: wanted.count, eos_token_id: null,
});
process.stdout.write(
    JSON.stringify({
        version: env.version,
        ids: wanted.texts.map((text) => tokenizer.encode(text)),
        texts: wanted.texts.map((text) => tokenizer.decode(tokenizer.encode(text), { skip_special_tokens: true })),
        shape: logits.dims,
        logits: Array.from(logits.to('float32').data, Number),
        made: made.tolist().map((row) => row.map(Number)),
    }),
);

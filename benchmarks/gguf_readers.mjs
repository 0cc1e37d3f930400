// llama.cpp through node-llama-cpp's prebuilt binaries: token ids of texts, and greedy answers to token ids.
// node gguf_readers.mjs FOLDER < {"file", "texts": [], "prompts": [[id]], "max_new_tokens"} > {"build", "ids", "answers"}
// FOLDER is where `npm install node-llama-cpp` was run.
import {readFileSync} from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const entry = path.join(path.resolve(process.argv[2]), "node_modules/node-llama-cpp/dist/index.js");
const {getLlama} = await import(pathToFileURL(entry).href);
const asked = JSON.parse(readFileSync(0, "utf8"));
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: Number(process.env.OMP_NUM_THREADS ?? 0)});
const model = await llama.loadModel({modelPath: asked.file});
// Keys and values as they are computed: rounding them to F16 would be the reader's loss, not the file's.
const exact = {experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32", flashAttention: false};
const context = await model.createContext({contextSize: 1024, sequences: 1, ...exact});
const sequence = context.getSequence();
const answers = [];
for (const prompt of asked.prompts) {
    await sequence.clearHistory();
    const answer = [];
    for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        answer.push(token);
        if (model.isEogToken(token) || answer.length >= asked.max_new_tokens) break;
    }
    answers.push(answer);
}
const ids = asked.texts.map((text) => [...model.tokenize(text, true)]);
process.stdout.write(JSON.stringify({build: llama.llamaCppRelease, ids, answers}));
process.exit(0);

package llmwire

var openAIEmbeddings = openAI(format{
	kind:      Embeddings,
	urlSuffix: "/embeddings",
	delivery:  AsItComes,
	output:    noOutput,
	smallest:  `{"input":"a"}`,
	safetyID:  memberName{"", "user"},

	rules: requestRules{members: newColumnTable(append(openAIEmbeddingsMembers, openAIMembers)...)},
	request: newJSONShape(openAIBody, jsonTable[Request]{
		"input":     {read: (*Request).readEmbedded},
		"input[]":   {read: (*Request).readEmbedded},
		"input[][]": {read: (*Request).readToken},
	}),
	report: newJSONShape(usageReport, jsonTable[Report]{"data": {read: (*Report).readResults}}),
})

// openAIEmbeddingsMembers has the top-level members of requests for embeddings. None adds to the input.
var openAIEmbeddingsMembers = []listing{
	// OpenAI's SDKs (EmbeddingCreateParams in resources/embeddings.d.ts).
	{known: []string{"dimensions", "encoding_format"}, ruled: []string{"input"}},
	// vLLM (vllm/entrypoints/pooling/embed/protocol.py).
	{
		known: []string{
			"add_special_tokens", "cache_salt", "embed_dtype", "endianness", "normalize", "request_id",
			"truncate_prompt_tokens", "truncation_side", "use_activation",
		},
		refused: []string{"messages", "mm_processor_kwargs", "priority"}, // media, and another service
	},
	// llama.cpp (tools/server/README.md), Ollama (openai/openai.go).
	{known: []string{"embd_normalize", "truncate"}, refused: []string{"keep_alive", "lora", "options"}},
	// Mistral (docs.mistral.ai/api, embeddings), Voyage and Jina, whose tasks add a prompt to each input.
	{
		known:   []string{"embedding_type", "metadata", "normalized", "output_dimension", "output_dtype", "truncation"},
		refused: []string{"input_type", "late_chunking", "task"},
	},
	// OpenRouter: another model or price. None has a stream.
	{refused: []string{"models", "provider", "stream"}},
}

// readEmbedded reads the input, or one of several: a text, or the numbers of tokens.
func (r *Request) readEmbedded(v jsonValue) {
	switch {
	case v.text[0] == '"':
		r.readText(v)
	case v.path == "input[]" && v.text[0] != '[':
		r.readToken(v)
	case v.text[0] != '[':
		r.failInput()
	}
}

// readToken reads the number of a token, which counts as much as the text of one.
func (r *Request) readToken(v jsonValue) {
	if c := v.text[0]; c < '0' || c > '9' {
		r.failInput()
		return
	}
	r.input.text += bytesOfEstimate
}

func (r *Request) failInput() {
	r.fail("input must be a string, or an array of strings or of numbers of tokens")
}

package llmwire

// openAIChatMembers has the top-level members of chat completions.
var openAIChatMembers = []listing{
	// OpenAI's SDKs (ChatCompletionCreateParamsBase in resources/chat/completions/completions.d.ts).
	{
		known: []string{
			"audio", "frequency_penalty", "function_call", "logit_bias", "logprobs", "messages", "metadata",
			"parallel_tool_calls", "presence_penalty", "prompt_cache_key", "prompt_cache_retention",
			"safety_identifier", "seed", "stop", "store", "temperature", "top_logprobs", "top_p", "user", "verbosity",
		},
		ruled: []string{
			"functions", "max_completion_tokens", "max_tokens", "modalities", "model", "n", "prompt_cache_options",
			"reasoning_effort", "response_format", "service_tier", "stream", "stream_options", "tool_choice", "tools",
		},
		refused: []string{
			"moderation",         // names another model
			"prediction",         // what is rejected of it is billed as output, beyond the limit
			"web_search_options", // adds input
		},
	},
	// Members of OpenAI's other API and of Anthropic's that have a rule wherever they stand.
	{
		ruled: []string{
			"background", "cache_control", "conversation", "mcp_servers", "previous_response_id", "reasoning", "speed",
			"thinking", "thread",
		},
	},
	// vLLM (ChatCompletionRequest in vllm/entrypoints/openai/chat_completion/protocol.py, and the guided_ members of its
	// earlier versions). Those that change how the output is sampled or written end within the limit.
	{
		known: []string{
			"add_generation_prompt", "add_special_tokens", "allowed_token_ids", "bad_words", "cache_salt",
			"continue_final_message", "echo", "guided_choice", "guided_decoding_backend", "guided_grammar",
			"guided_regex", "guided_whitespace_pattern", "ignore_eos", "include_reasoning",
			"include_stop_str_in_output", "length_penalty", "logprob_token_ids", "min_p", "min_tokens",
			"prompt_logprobs", "repetition_detection", "repetition_penalty", "request_id", "return_prompt_text",
			"return_token_ids", "return_tokens_as_token_ids", "session_id", "skip_special_tokens",
			"spaces_between_special_tokens", "stop_token_ids", "stream_interval", "thinking_token_budget", "top_k",
			"truncate_prompt_tokens", "truncation_side", "watermarking",
		},
		ruled: []string{"chat_template_kwargs", "documents", "guided_json", "structured_outputs"},
		refused: []string{
			"best_of", "use_beam_search", // generate more than n choices
			"chat_template",                          // may repeat the input
			"media_io_kwargs", "mm_processor_kwargs", // change how many tokens a medium has
			"ec_transfer_params", "kv_transfer_params", "logits_processors", "vllm_xargs", // may do anything
			"priority", // another service
		},
	},
	// llama.cpp (tools/server/README.md and server-schema.cpp).
	{
		known: []string{
			"adaptive_decay", "adaptive_target", "cache_prompt", "dry_allowed_length", "dry_base", "dry_multiplier",
			"dry_penalty_last_n", "dry_sequence_breakers", "dynatemp_exponent", "dynatemp_range", "grammar",
			"grammar_lazy", "min_keep", "mirostat", "mirostat_eta", "mirostat_tau", "n_indent", "n_keep",
			"n_probs", "parse_tool_calls", "post_sampling_probs", "reasoning_format", "repeat_last_n", "repeat_penalty",
			"return_progress", "return_tokens", "samplers", "t_max_predict_ms", "timings_per_token",
			"top_n_sigma", "typical_p", "xtc_probability", "xtc_threshold",
		},
		ruled: []string{"json_schema"},
		refused: []string{
			"lora",      // another model
			"n_cmpl",    // takes precedence over n
			"n_predict", // takes precedence over max_tokens
			"id_slot",   // takes the cache of others

			"response_fields", // may leave the usage out
		},
	},
	// Ollama (docs/openai.md and openai/openai.go, and members of its own API that clients send to both).
	{
		known:   []string{"format", "think"},
		refused: []string{"keep_alive", "options"}, // a limit and a context of their own
	},
	// OpenRouter (openrouter.ai/docs, API reference: parameters, provider routing, web search, prompt transforms).
	{
		known: []string{"top_a", "trace", "transforms"},
		ruled: []string{"usage"}, // may leave the usage out
		refused: []string{
			"models", "preset", "provider", "route", // another model or price
			"plugins",      // add input
			"image_config", // output that costs more
		},
	},
	// Groq (console.groq.com/docs/api-reference).
	{
		known:   []string{"citation_options", "disable_tool_validation"},
		refused: []string{"compound_custom", "exclude_domains", "include_domains", "search_settings"}, // add input
	},
	// Mistral (docs.mistral.ai/api, chat completion).
	{
		known:   []string{"random_seed"},
		refused: []string{"guardrails", "prompt_mode", "safe_prompt"}, // add input
	},
	// xAI (docs.x.ai, API reference, chat completions).
	{
		refused: []string{
			"deferred",          // the response comes elsewhere
			"search_parameters", // adds input
		},
	},
	// DeepSeek (api-docs.deepseek.com) and Qwen (help.aliyun.com, Model Studio: OpenAI compatible).
	{
		known:   []string{"enable_thinking", "thinking_budget"},
		refused: []string{"enable_search", "search_options"}, // add input
	},
	// Azure (learn.microsoft.com, Azure OpenAI REST reference), and what SDKs may send by mistake.
	{
		known:   []string{"user_security_context"},
		refused: []string{"data_sources", "extra_body"},
	},
	// Anthropic's members that choose another model or price: servers with several formats may know them in all.
	{refused: []string{"container", "fallbacks", "inference_geo"}},
}

// openAIChatTools has the types of tools of chat completions. A tool without a type is a function.
var openAIChatTools = listing{known: []string{"function", "custom"}}

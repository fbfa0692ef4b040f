package llmwire

// openAIResponsesMembers has the top-level members of responses.
var openAIResponsesMembers = []listing{
	// OpenAI's SDKs (ResponseCreateParamsBase and ResponseCompactParams in resources/responses/responses.d.ts,
	// InputTokenCountParams in resources/responses/input-tokens.d.ts). What the whole conversation is truncated to is no
	// more than what was sent.
	{
		known: []string{
			"image", "include", "max_tool_calls", "metadata", "parallel_tool_calls", "prompt_cache_key",
			"prompt_cache_retention", "safety_identifier", "temperature", "top_logprobs", "top_p", "truncation", "user",
		},
		ruled: []string{
			"background", "context_management", "conversation", "input", "instructions", "max_output_tokens", "model",
			"previous_response_id", "prompt", "prompt_cache_options", "reasoning", "service_tier", "store", "stream",
			"stream_options", "text", "tool_choice", "tools",
		},
		refused: []string{
			"access_programs",    // other models
			"background_options", // the response comes elsewhere
			"moderation",         // names another model
			"personality",        // adds input
		},
	},
	// Members of OpenAI's and Anthropic's other APIs that have a rule wherever they stand.
	{
		ruled: []string{
			"cache_control", "max_completion_tokens", "max_tokens", "mcp_servers", "modalities", "speed", "thinking", "thread",
		},
	},
	// Codex (codex-rs/codex-api, ResponsesApiRequest).
	{known: []string{"client_metadata"}},
	// vLLM (ResponsesRequest in vllm/entrypoints/openai/responses/protocol.py).
	{
		known: []string{
			"cache_salt", "enable_response_messages", "frequency_penalty", "ignore_eos", "include_stop_str_in_output",
			"logit_bias", "presence_penalty", "repetition_penalty", "seed", "skip_special_tokens", "stop",
			"thinking_token_budget", "top_k",
		},
		ruled: []string{"structured_outputs"},
		refused: []string{
			"chat_template_kwargs",                   // may repeat the input
			"media_io_kwargs", "mm_processor_kwargs", // change how many tokens a medium has
			"previous_input_messages", "previous_response", // input of another shape
			"priority",   // another service
			"request_id", // becomes the ID of the response, which may be that of somebody else's
			"vllm_xargs", // may do anything
		},
	},
	// llama.cpp (tools/server/README.md): what its chat completions know, too, and what takes precedence.
	{
		known:   []string{"cache_prompt", "min_p", "n_probs", "repeat_penalty", "timings_per_token"},
		refused: []string{"id_slot", "lora", "n_cmpl", "n_predict", "response_fields"},
	},
	// Ollama (openai/responses.go) has OpenAI's alone. OpenRouter (openrouter.ai/docs, API reference: responses).
	{
		known: []string{"session_id", "top_a", "trace"},
		refused: []string{
			"models", "preset", "provider", "route", // another model or price
			"plugins",      // add input
			"image_config", // output that costs more
		},
	},
	// xAI (docs.x.ai, API reference, create new response).
	{
		known:   []string{"logprobs"},
		refused: []string{"deferred", "search_parameters"},
	},
	// Members of chat completions that choose another model, price or number of choices, and what SDKs may send by
	// mistake: servers with several formats may know them in all.
	{
		refused: []string{
			"best_of", "container", "data_sources", "enable_search", "extra_body", "fallbacks", "inference_geo", "options",
			"prediction", "use_beam_search", "web_search_options",
		},
	},
}

// openAIResponsesTools has the types of tools of responses (Tool of OpenAI's SDKs). Two of them run where they say.
var openAIResponsesTools = listing{
	known: []string{"apply_patch", "computer", "computer_*", "custom", "function", "local_shell", "namespace"},
	ruled: []string{"shell", "tool_search"},
	refused: []string{
		"code_interpreter", "file_search", "image_generation", "mcp", "programmatic_tool_calling", "web_search",
		"web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11",
	},
}

// openAIResponsesParts has the types of items and of what is in them that only responses have (ResponseInputItem of
// OpenAI's SDKs). Results of tools that the provider has run are in the body, and are not run again.
var openAIResponsesParts = listing{
	known: []string{
		"additional_tools", "apply_patch_call", "apply_patch_call_output", "code_interpreter_call", "compaction_trigger",
		"computer_call", "computer_call_output", "computer_screenshot", "configuration_update", "custom_tool_call",
		"custom_tool_call_output", "file_search_call", "function_call", "function_call_output", "image_generation_call",
		"item_reference", "local_shell_call", "local_shell_call_output", "logs", "mcp_approval_request", "mcp_call",
		"mcp_list_tools", "reasoning", "reasoning_text", "shell_call", "shell_call_output", "summary_text",
		"tool_search_call", "tool_search_output", "web_search_call",
	},
	refused: []string{
		"mcp_approval_response",     // lets the provider go on
		"program", "program_output", // which the provider runs
	},
}

package llmwire

// anthropicMembers has the top-level members of messages, from Anthropic's SDKs (MessageCreateParamsBase in
// resources/messages/messages.d.ts and resources/beta/messages/messages.d.ts).
var anthropicMembers = listing{
	known: []string{
		"diagnostics", "fallback_credit_token", "messages", "metadata", "stop_sequences", "system", "temperature", "top_k",
		"top_p",
	},
	ruled: []string{
		"cache_control", "compaction", "context_management", "max_tokens", "mcp_servers", "model", "output_config",
		"output_format", "service_tier", "speed", "stream", "thinking", "thread", "tool_choice", "tools",
		// OpenAI's members that have a rule wherever they stand.
		"background", "conversation", "previous_response_id", "reasoning", "reasoning_effort",
	},
	refused: []string{
		"betas",                           // may change the price, as those of the header
		"billing_policy",                  // another account
		"container",                       // for what the provider runs
		"fallbacks",                       // other models
		"inference_geo",                   // another price
		"user_profile_id", "workspace_id", // other accounts
		"models", "plugins", "provider", "route", // other models and prices at OpenRouter, which has this format, too
	},
}

// anthropicTools has the types of tools of messages (BetaToolUnion). A tool without a type is a custom one. What a
// search among tools adds to the input is in the request already. A function is OpenAI's, and runs at the client.
var anthropicTools = listing{
	known: []string{
		"custom", "function", "bash_*", "browser_*", "computer_*", "memory_*", "text_editor_*",
		"tool_search_tool_bm25", "tool_search_tool_bm25_*", "tool_search_tool_regex", "tool_search_tool_regex_*",
	},
	refused: []string{
		"advisor_20260301", "code_execution_20250522", "code_execution_20250825", "code_execution_20260120",
		"code_execution_20260521", "mcp_tool_reference", "mcp_toolset", "mcp_toolset_reference",
		"web_fetch_20250910", "web_fetch_20260209", "web_fetch_20260309",
		"web_fetch_20260318", "web_search_20250305", "web_search_20260209", "web_search_20260318",
	},
}

package llmwire

// partTypes has the types of content parts and of messages, and of the results in them, in all formats: a provider may
// understand those of another format than its own. What is known adds nothing to the input but what is in the body, or
// is counted as a medium.
var partTypes = newColumnTable(
	// OpenAI's SDKs (ChatCompletionContentPart, and the parts and items of responses that have the same meaning).
	listing{known: []string{
		"file", "image_url", "input_audio", "input_file", "input_image", "input_text", "message", "output_text",
		"refusal", "text",
	}},
	// Anthropic's SDKs (BetaContentBlockParam, and what is inside these). Results of tools that the provider has run are
	// in the body, and are not run again.
	listing{
		known: []string{
			"browser_state", "compaction", "document", "image", "redacted_thinking", "search_result", "thinking",
			"tool_addition", "tool_reference", "tool_removal", "tool_result", "tool_use",

			"advisor_redacted_result", "advisor_result", "advisor_tool_result", "advisor_tool_result_error",
			"bash_code_execution_output", "bash_code_execution_result", "bash_code_execution_tool_result",
			"bash_code_execution_tool_result_error", "code_execution_output", "code_execution_result",
			"code_execution_tool_result", "code_execution_tool_result_error", "encrypted_code_execution_result",
			"mcp_tool_result", "mcp_tool_use", "server_tool_use", "text_editor_code_execution_create_result",
			"text_editor_code_execution_str_replace_result", "text_editor_code_execution_tool_result",
			"text_editor_code_execution_tool_result_error", "text_editor_code_execution_view_result",
			"tool_search_tool_result", "tool_search_tool_result_error", "tool_search_tool_search_result",
			"web_fetch_result", "web_fetch_tool_result", "web_fetch_tool_result_error", "web_search_result",
			"web_search_tool_result", "web_search_tool_result_error",
		},
		refused: []string{
			"container_upload", // is read by what the provider runs
			"fallback",         // names other models
			"mcp_tool_listing", // of servers that the provider calls
		},
	},
	// vLLM (vllm/entrypoints/chat_utils.py), OpenRouter, Mistral (docs.mistral.ai/api).
	listing{
		known:   []string{"audio_url", "document_url", "reference", "video_url"},
		refused: []string{"audio_embeds", "image_embeds"}, // their tokens are not in proportion to anything that is read
	},
)

package main

import "strings"

// A wireFormat is one of the two formats in which the gateway speaks with clients and providers.
type wireFormat int

// The formats.
const (
	openAIChat        wireFormat = iota // https://platform.openai.com/docs/api-reference/chat
	anthropicMessages                   // https://docs.anthropic.com/en/api/messages
)

// wireFormatOf returns the format that a provider's URL path ends in, and false if it is neither.
func wireFormatOf(urlPath string) (wireFormat, bool) {
	if strings.HasSuffix(urlPath, "/chat/completions") {
		return openAIChat, true
	}
	return anthropicMessages, strings.HasSuffix(urlPath, "/messages")
}

// limitMember returns the member in which the provider at host expects the limit of output tokens.
func (f wireFormat) limitMember(host string) string {
	if f == openAIChat && host == "api.openai.com" {
		return "max_completion_tokens" // its newer models refuse max_tokens
	}
	return "max_tokens"
}

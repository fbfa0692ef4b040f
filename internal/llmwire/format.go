package llmwire

import "strings"

// A Format is one of the two formats in which the gateway speaks with clients and providers.
type Format int

// The formats.
const (
	OpenAIChat        Format = iota // https://platform.openai.com/docs/api-reference/chat
	AnthropicMessages               // https://docs.anthropic.com/en/api/messages
)

// FormatOf returns the format that a provider's URL path ends in, and false if it is neither.
func FormatOf(urlPath string) (Format, bool) {
	if strings.HasSuffix(urlPath, "/chat/completions") {
		return OpenAIChat, true
	}
	return AnthropicMessages, strings.HasSuffix(urlPath, "/messages")
}

// LimitMember returns the member in which the provider at host expects the limit of output tokens.
func (f Format) LimitMember(host string) string {
	if f == OpenAIChat && host == "api.openai.com" {
		return "max_completion_tokens" // its newer models refuse max_tokens
	}
	return "max_tokens"
}

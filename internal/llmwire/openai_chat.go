package llmwire

import "fmt"

var openAIChat = format{
	urlSuffix: "/chat/completions",
	keyHeader: "Authorization",
	keyPrefix: "Bearer ",

	requestIDHeader: "X-Request-Id",

	limitMember: func(host string) string {
		if isOpenAI(host) {
			return "max_completion_tokens" // its newer models refuse max_tokens
		}
		return "max_tokens"
	},
	usageOption: true,
	safetyID:    memberName{"", "safety_identifier"},

	rules: requestRules{
		members: newColumnTable(openAIChatMembers...),
		tools:   newColumnTable(openAIChatTools),
	},
	request: newJSONShape(requestMembers),
	report: newJSONShape(reportMembers, jsonTable[Report]{
		"":                        {read: (*Report).readObject},
		"usage":                   {read: (*Report).readUsage},
		"usage.prompt_tokens":     {read: (*Report).readInput},
		"usage.completion_tokens": {read: (*Report).readOutput},
		"choices":                 {read: (*Report).readChoices},
		"choices[]":               {read: (*Report).endChoice},
		"choices[].index":         {read: (*Report).readIndex},
		"choices[].finish_reason": {read: (*Report).readFinishReason},
	}),

	errorBody: openAIErrorBody,
	errorEvent: func(status int, message string) []byte {
		return fmt.Appendf(nil, "data: %s\n\n", openAIErrorBody(status, errorText{message: message}))
	},
	isAccountError: isOpenAIAccountError,
	modelBody:      openAIModelBody,
	modelList:      openAIModelList,
}

func (r *Report) readUsage(v jsonValue) { r.object.hasUsage = v.text[0] == '{' }

func (r *Report) readIndex(v jsonValue) { readCount(&r.object.choice, v) }

func (r *Report) readFinishReason(v jsonValue) { r.object.reason = v.text }

func (r *Report) endChoice(jsonValue) {
	o := &r.object
	r.readStop(o.reason, o.choice)
	o.hasChoices, o.reason, o.choice = true, nil, 0
}

func (r *Report) readChoices(v jsonValue) {
	r.object.hasEmptyChoices = v.text[0] == '[' && !r.object.hasChoices
}

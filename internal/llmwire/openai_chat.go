package llmwire

var openAIChat = openAI(format{
	kind:      Text,
	urlSuffix: "/chat/completions",

	limitMember: func(host string) string {
		if isOpenAI(host) {
			return "max_completion_tokens" // its newer models refuse max_tokens
		}
		return "max_tokens"
	},
	limitVaries: true,
	usageOption: true,
	smallest:    `{"messages":[{"role":"user","content":"a"}]}`,
	safetyID:    memberName{"", "safety_identifier"},

	rules: requestRules{
		members: newColumnTable(openAIChatMembers...),
		tools:   newColumnTable(openAIChatTools),
	},
	request: newJSONShape(requestMembers, jsonTable[Request]{
		"chat_template_kwargs.chat_template": {read: (*Request).readTemplate},
		"usage":                              {read: (*Request).readUsageOption, each: (*Request).checkMemberCase},
		"usage.include":                      {read: (*Request).readUsageIncluded},
	}),
	report: newJSONShape(reportMembers, jsonTable[Report]{
		"choices":                 {read: (*Report).readChoices},
		"choices[]":               {enter: (*Report).beginChoice, read: (*Report).endChoice},
		"choices[].index":         {read: (*Report).readIndex},
		"choices[].finish_reason": {read: (*Report).readFinishReason},
		"choices[].error":         {read: (*Report).readError},
		"object":                  {read: (*Report).readObjectType},
		"x_groq.error":            {read: (*Report).readError},
	}),
})

// readTemplate reads a template among its own parameters, where older servers take it, too (vLLM until 0.11, SGLang).
func (r *Request) readTemplate(v jsonValue) {
	if !v.isNull() {
		r.addUnknown("chat_template")
	}
}

// readUsageOption and readUsageIncluded read OpenRouter's member that can take the usage out of the response. It says
// nothing new if include is true.
func (r *Request) readUsageOption(v jsonValue) {
	if !v.isNull() && !r.includesUsage {
		r.addUnknown(v.path)
	}
}

func (r *Request) readUsageIncluded(v jsonValue) {
	if r.includesUsage = string(v.text) == "true"; !r.includesUsage {
		r.addUnknown("usage")
	}
}

// readObjectType reads the type of an object, which is an error in vLLM's streams and Mistral's responses.
func (r *Report) readObjectType(v jsonValue) {
	if string(v.text) == `"error"` {
		r.fail()
	}
}

func (r *Report) beginChoice() { r.object.choice, r.object.reason = 0, nil }

func (r *Report) readIndex(v jsonValue) {
	if index, ok := readCount(v.text); ok {
		r.object.choice = index
	}
}

func (r *Report) readFinishReason(v jsonValue) { r.object.reason = v.text }

func (r *Report) endChoice(jsonValue) {
	r.readStop(r.object.reason, r.object.choice)
	r.object.hasChoices = true
}

func (r *Report) readChoices(v jsonValue) {
	r.object.hasEmptyChoices = v.text[0] == '[' && !r.object.hasChoices
	r.hasChoices = r.object.hasChoices || r.hasChoices
}

package llmwire

var openAIResponses = openAI(format{
	kind:        Text,
	urlSuffix:   "/responses",
	limitMember: func(string) string { return "max_output_tokens" },
	safetyID:    memberName{"", "safety_identifier"},

	rules:   requestRules{members: newColumnTable(openAIMembers)},
	request: newJSONShape(requestMembers),
	report:  newJSONShape(reportMembers),
})

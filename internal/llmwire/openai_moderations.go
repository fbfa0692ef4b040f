package llmwire

var openAIModerations = openAI(format{
	kind:      Moderation,
	urlSuffix: "/moderations",

	rules:   requestRules{members: newColumnTable(openAIMembers)},
	request: newJSONShape(requestMembers),
	report:  newJSONShape(reportMembers),
})

package llmwire

var openAISpeech = openAI(format{
	kind:      Speech,
	urlSuffix: "/audio/speech",

	rules:   requestRules{members: newColumnTable(openAIMembers)},
	request: newJSONShape(requestMembers),
	report:  newJSONShape(reportMembers),
})

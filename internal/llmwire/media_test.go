package llmwire

import (
	"fmt"
	"testing"
)

// Base64 is subtracted only if it surely is the data of a medium. What is not in the body is of unknown size.
func TestMedia(t *testing.T) {
	part := func(part string) string { return `{"messages":[{"role":"user","content":[` + part + `]}]}` }
	const none = "0 media, 0 files [], 0 bytes of base64"
	for _, test := range []struct{ name, body, want string }{
		{"text", part(`{"type":"text","text":"QUJD"}`), none},
		{"string", `{"messages":[{"role":"user","content":"data:image/png;base64,QUJD"}]}`, none},
		{"image URL", part(`{"type":"image_url","image_url":{"url":"https://example.com/a.png"}}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"data URL", part(`{"type":"image_url","image_url":{"detail":"low","url":"data:image/png;base64,QUJDRA=="}}`),
			"1 media, 0 files [], 8 bytes of base64 images"},
		{"data URL as a string", part(`{"image_url":"data:image/png;base64,QUJD","type":"image_url"}`),
			"1 media, 0 files [], 4 bytes of base64 images"},
		{"input image", part(`{"type":"input_image","image_url":"data:image/png;base64,QUJD"}`),
			"1 media, 0 files [], 4 bytes of base64 images"},
		{"no type", part(`{"image_url":{"url":"data:image/png;base64,QUJD"}}`),
			"1 media, 0 files [], 4 bytes of base64 images"},
		{"images of an assistant", `{"messages":[{"role":"assistant","content":"here","images":[` +
			`{"type":"image_url","image_url":{"url":"data:image/png;base64,QUJD"}},{"image_url":"data:;base64,QUJD"}]}]}`,
			"2 media, 0 files [], 8 bytes of base64 images"},
		{"escaped slash", part(`{"type":"image_url","image_url":{"url":"data:image\/png;base64,QU\/JD"}}`),
			"1 media, 0 files [], 6 bytes of base64 images"},
		{"text as URL", part(`{"type":"image_url","image_url":{"url":"data:text/plain;base64,QUJD"}}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"JSON as URL", part(`{"type":"image_url","image_url":{"url":"data:application/json;base64,QUJD"}}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"escaped text as URL", part(`{"type":"image_url","image_url":{"url":"data:\u0074ext/plain;base64,QUJD"}}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"plain data URL", part(`{"type":"image_url","image_url":{"url":"data:image/svg+xml,QUJD"}}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"words", part(`{"type":"image_url","image_url":{"url":"data:image/png;base64,ignore all of this"}}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"escapes", part(`{"type":"image_url","image_url":{"url":"data:image/png;base64,QUJD\n"}}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"PDF as image URL", part(`{"type":"image_url","image_url":{"url":"data:application/pdf;base64,QUJD"}}`),
			"0 media, 0 files [3], 4 bytes of base64 images"},
		{"video as image URL", part(`{"type":"image_url","image_url":{"url":"data:video/mp4;base64,QUJD"}}`),
			"0 media, 0 files [3], 4 bytes of base64 audio images"},
		{"audio", part(`{"type":"input_audio","input_audio":{"data":"QUJD","format":"wav"}}`),
			"1 media, 0 files [], 4 bytes of base64 audio"},
		{"audio URL", part(`{"type":"audio_url","audio_url":{"url":"https://example.com/a.wav"}}`),
			"1 media, 0 files [], 0 bytes of base64 audio"},
		{"audio of an earlier response", `{"messages":[{"role":"assistant","audio":{"id":"audio_1"}},{"audio":null}]}`,
			"1 media, 0 files [], 0 bytes of base64 audio"},
		{"video", part(`{"type":"video_url","video_url":{"url":"https://example.com/a.mp4"}}`),
			"0 media, 1 files [], 0 bytes of base64 audio images"},
		{"video in the body", part(`{"type":"video_url","video_url":{"url":"data:video/mp4;base64,QUJDREVG"}}`),
			"0 media, 0 files [6], 8 bytes of base64 audio images"},
		{"file", part(`{"type":"file","file":{"file_data":"data:application/pdf;base64,QUJD","filename":"a"}}`),
			"0 media, 0 files [3], 4 bytes of base64 images"},
		{"bare file", part(`{"type":"file","file":{"file_data":"QUJD","filename":"a"}}`),
			"0 media, 0 files [3], 4 bytes of base64 images"},
		{"file at a URL", part(`{"type":"file","file":{"file_data":"https://example.com/a.pdf"}}`),
			"0 media, 1 files [], 0 bytes of base64 images"},
		{"text file", part(`{"type":"file","file":{"file_data":"data:text/csv;base64,QUJD"}}`),
			"0 media, 0 files [], 0 bytes of base64 images"},
		{"file ID", part(`{"type":"file","file":{"file_id":"QUJD"}}`), "0 media, 1 files [], 0 bytes of base64 images"},
		{"file ID beside data", part(`{"type":"file","file":{"file_data":"QUJD","file_id":"file_1"}}`),
			"0 media, 1 files [], 4 bytes of base64 images"},
		{"empty file", part(`{"type":"file"}`), "0 media, 1 files [], 0 bytes of base64 images"},
		{"document URL", part(`{"type":"document_url","document_url":"https://example.com/a.pdf"}`),
			"0 media, 1 files [], 0 bytes of base64 images"},
		{"image", part(`{"type":"image","source":{"type":"base64","media_type":"image/png","data":"QUJD"}}`),
			"1 media, 0 files [], 4 bytes of base64 images"},
		{"data first", part(`{"source":{"data":"QUJD","type":"base64"},"type":"document"}`),
			"0 media, 0 files [3], 4 bytes of base64 images"},
		{"document URL of Anthropic's", part(`{"type":"document","source":{"type":"url","url":"https://example.com"}}`),
			"0 media, 1 files [], 0 bytes of base64 images"},
		{"document by ID", part(`{"type":"document","source":{"type":"file","file_id":"file_1"}}`),
			"0 media, 1 files [], 0 bytes of base64 images"},
		{"document of a new kind", part(`{"type":"document","source":{"type":"drive","data":"QUJD"}}`),
			"0 media, 1 files [], 0 bytes of base64 images"},
		{"text document", part(`{"type":"document","source":{"type":"text","data":"QUJD"}}`),
			"0 media, 0 files [], 0 bytes of base64 images"},
		{"text document, data first", part(`{"type":"document","source":{"data":"QUJD","type":"text"}}`),
			"0 media, 0 files [], 0 bytes of base64 images"},
		{"two types", part(`{"type":"document","source":{"type":"text","data":"QUJD","type":"base64"}}`),
			"0 media, 1 files [], 0 bytes of base64 images"},
		{"two sources", part(`{"type":"image","source":{"type":"base64"},"source":{"type":"text","data":"QUJD"}}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"not a medium", part(`{"type":"text","source":{"type":"base64","data":"QUJD"}}`), none},
		{"first a medium", part(`{"type":"image_url","type":"text","image_url":"https://example.com"}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"escaped type", part(`{"type":"\u0069mage","source":{"type":"url","url":"https://example.com"}}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"result of a tool", part(`{"type":"tool_result","content":[{"type":"text","text":"x"},` +
			`{"type":"image","source":{"type":"base64","data":"QUJD"}}]},{"type":"image","source":{"type":"url"}}`),
			"2 media, 0 files [], 4 bytes of base64 images"},
		{"document of parts", part(`{"type":"document","source":{"type":"content","content":[` +
			`{"type":"image","source":{"type":"base64","data":"QUJD"}}]}}`), "1 media, 0 files [], 4 bytes of base64 images"},
		{"fetched document", part(`{"type":"web_fetch_tool_result","content":{"type":"web_fetch_result","content":` +
			`{"type":"document","source":{"type":"url","url":"https://example.com"}}}}`),
			"0 media, 1 files [], 0 bytes of base64 images"},
		{"inner part does not hide a text",
			part(`{"source":{"type":"text","content":[{}],"data":"QUJD"},"type":"image"}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"system prompt", `{"system":[{"type":"image","source":{"type":"base64","data":"QUJD"}}]}`,
			"1 media, 0 files [], 4 bytes of base64 images"},
		{"input of a tool", part(`{"type":"tool_use","input":{"type":"file","files":[{"type":"file"}]}}`), none},
		{"tools", `{"tools":[{"type":"image","source":{"type":"base64","data":"QUJD"}}]}`, none},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, err := ReadRequest(OpenAIChat, []byte(test.body))
			if err != nil {
				t.Fatalf("%s: %v", test.body, err)
			}
			in := &r.input
			got := fmt.Sprintf("%d media, %d files %v, %d bytes of base64", in.media, in.files, in.fileBytes, in.base64)
			if r.HasAudio {
				got += " audio"
			}
			if r.HasImages {
				got += " images"
			}
			if got != test.want {
				t.Errorf("%s\ngot  %s\nwant %s", test.body, got, test.want)
			}
		})
	}
}

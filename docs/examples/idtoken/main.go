// Idtoken stands in for Google, to try signing in without an account. It prints an ID token for a client ID, which is
// valid for an hour, serves the key that has signed it until that was fetched once, and ends.
//
//	go run docs/examples/idtoken/main.go google-client-abc localhost:8091
//
// Tollgate fetches the key if it was started with GOOGLE_KEYS_URL=http://localhost:8091.
package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"time"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: idtoken <client ID> <address to listen on>")
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	now, encode := time.Now().Unix(), base64.RawURLEncoding.EncodeToString
	claims := fmt.Sprintf(`{"iss":"https://accounts.google.com","aud":%q,"sub":"110169484474386276334","iat":%d,"exp":%d}`,
		os.Args[1], now, now+3600)
	signed := encode([]byte(`{"alg":"RS256","kid":"k1"}`)) + "." + encode([]byte(claims))
	hash := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, hash[:])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(signed + "." + encode(signature))

	server := new(http.Server)
	fetched := make(chan struct{})
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"keys":[{"kty":"RSA","kid":"k1","alg":"RS256","use":"sig","n":%q,"e":"AQAB"}]}`,
			encode(key.N.Bytes()))
		close(fetched)
	})
	go func() { _ = server.Serve(listener) }()
	<-fetched
	_ = server.Shutdown(context.Background())
}

// Ask about pictures with Go's standard library, all in one request.
//
//	go run examples/ask.go examples/digit-7.png …
//	TRESNET_URL=https://gateway.example TRESNET_API_KEY=tresnet_… go run examples/ask.go …
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

type problem struct {
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

type answer struct {
	Results []struct {
		Status      string `json:"status"`
		Predictions []struct {
			Label string  `json:"label"`
			Score float64 `json:"score"`
		} `json:"predictions"`
		Error problem `json:"error"`
	} `json:"results"`
}

func main() {
	url, paths := "http://127.0.0.1:8080", os.Args[1:]
	if given := os.Getenv("TRESNET_URL"); given != "" {
		url = given
	}
	found, err := ask(url+"/classify?top_k=1", paths)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	status := 0
	for i, result := range found.Results {
		if name := filepath.Base(paths[i]); result.Status == "ok" {
			fmt.Printf("%s %s %.3f\n", name, result.Predictions[0].Label, result.Predictions[0].Score)
		} else {
			fmt.Println(name, result.Error.Code)
			status = 1
		}
	}
	os.Exit(status)
}

// ask posts the pictures as a form, and again after Retry-After while the gateway is busy, for a minute at most.
func ask(url string, paths []string) (found answer, err error) {
	body, kind, err := form(paths)
	if err != nil {
		return found, err
	}
	ends := time.Now().Add(time.Minute)
	for {
		left := time.Until(ends)
		request, err := http.NewRequest("POST", url, bytes.NewReader(body))
		if err != nil {
			return found, err
		}
		request.Header.Set("Content-Type", kind)
		request.Header.Set("X-Request-Timeout-Ms", strconv.FormatInt(left.Milliseconds(), 10))
		if key := os.Getenv("TRESNET_API_KEY"); key != "" {
			request.Header.Set("X-API-Key", key)
		}
		response, err := (&http.Client{Timeout: left}).Do(request)
		if err != nil {
			return found, err
		}
		content, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			return found, err
		}
		if response.StatusCode == http.StatusOK {
			return found, json.Unmarshal(content, &found)
		}
		var refused problem
		if json.Unmarshal(content, &refused) != nil { // a proxy's page
			refused = problem{Code: "no problem document", Detail: response.Status}
		}
		seconds, err := strconv.ParseFloat(response.Header.Get("Retry-After"), 64)
		if err != nil {
			seconds = 1
		}
		pause := time.Duration(seconds * (1 + rand.Float64()/4) * float64(time.Second))
		switch response.StatusCode {
		case 429, 502, 503, 504:
			if time.Now().Add(pause).Before(ends) {
				time.Sleep(pause)
				continue
			}
		}
		return found, fmt.Errorf("%s: %s", refused.Code, refused.Detail)
	}
}

func form(paths []string) ([]byte, string, error) {
	var body bytes.Buffer
	parts := multipart.NewWriter(&body)
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, "", err
		}
		part, err := parts.CreateFormFile("image", filepath.Base(path))
		if err != nil {
			return nil, "", err
		}
		if _, err := part.Write(data); err != nil {
			return nil, "", err
		}
	}
	err := parts.Close()
	return body.Bytes(), parts.FormDataContentType(), err
}

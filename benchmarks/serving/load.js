// RATE in requests a ten seconds: an open loop. Without it: a closed loop of CONNECTIONS clients.
import http from "k6/http";

const body = open(__ENV.BODY, "b");
const duration = `${__ENV.SECONDS}s`;

export const options = {
  summaryTrendStats: ["med", "p(99)", "max"],
  scenarios: {
    load: __ENV.RATE
      ? {
          executor: "constant-arrival-rate",
          rate: parseInt(__ENV.RATE),
          timeUnit: "10s",
          duration,
          preAllocatedVUs: 400,
          gracefulStop: "30s",
        }
      : { executor: "constant-vus", vus: parseInt(__ENV.CONNECTIONS), duration, gracefulStop: "30s" },
  },
};

export default function () {
  http.post(__ENV.URL, body, { headers: { "Content-Type": __ENV.CONTENT_TYPE }, timeout: "60s" });
}

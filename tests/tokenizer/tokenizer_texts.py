"""Texts of our own on which tests train tokenizers."""

GENERAL = [
    "The town has a bridge of 39 metres; the bridge was built 12 years ago.\n\nTravellers: cross it slowly.",
    "don't can't won't the the the travellers' town's\n  indented\n\tand tabs   and  spaces   ",
    "今天天气很好，我们去公园散步。公园里有很多人，天气很好。",
] * 5
MEDICAL = [
    "患者发热三天，体温39度。患者咳嗽，给予对乙酰氨基酚治疗。糖尿病患者应控制血糖。",
    "The patient has a fever of 39 degrees; the fever began 12 days ago.\n\nTreatment: paracetamol 500 mg.",
] * 5
